"""Opening the registry's database: connection, migrations, and errors in plain words."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, make_url, text
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    InterfaceError,
    OperationalError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from caravan.errors import RegistryError, RegistryUnavailableError, require
from caravan.registry.models import SCHEMA_VERSION, Base

MIGRATIONS = Path(__file__).parent / "migrations"
BUSY_TIMEOUT_SECONDS = 30
CONNECT_TIMEOUT_SECONDS = 10


def parse_url(url: str) -> URL:
    """`url` with the driver that we ship for its database.

    Raises:
        RegistryError: it is not the URL of an SQLite file or of a Postgres database.
        MissingExtraError: the driver for Postgres is not installed.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise RegistryError(
            "the registry's URL cannot be read; write sqlite:///path/to/registry.db "
            "or postgresql://user:password@host:5432/database"
        ) from error
    backend = parsed.get_backend_name()
    if backend in ("postgresql", "postgres"):
        require("psycopg", extra="postgres", feature="a registry on Postgres")
        return parsed.set(drivername="postgresql+psycopg")
    if backend == "sqlite":
        if not parsed.database or parsed.database == ":memory:":
            raise RegistryError("a registry on SQLite needs a file: sqlite:///path/to/registry.db")
        return parsed.set(drivername="sqlite+pysqlite")
    raise RegistryError(
        f"registry {mask(parsed)}: {backend!r} is not supported; use sqlite:///... or postgresql://..."
    )


def mask(url: URL) -> str:
    """The URL as it may be shown: without password."""
    return url.render_as_string(hide_password=True).replace("+psycopg", "").replace("+pysqlite", "")


def connect(url: URL) -> Engine:
    """An engine on an existing database, or on a new SQLite file."""
    if url.get_backend_name() == "sqlite":
        engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_SECONDS})
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    return create_engine(
        url,
        pool_pre_ping=True,
        connect_args={
            "connect_timeout": CONNECT_TIMEOUT_SECONDS,
            "application_name": "caravan",
            "client_encoding": "utf8",  # also of a database made in the locale C
        },
    )


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # we begin transactions ourselves, see _begin_sqlite
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("PRAGMA foreign_keys=ON")
    # SQLite's own knows A to Z only.
    connection.create_function("lower", 1, str.lower, deterministic=True)


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads before it writes cannot wait for another writer: SQLite answers
    # "locked" at once. Writers therefore take the write lock when they begin.
    write = connection.get_execution_options().get("write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


_MOVE_AWAY = "put a backup in its place, or move it away to start with an empty registry"


@contextmanager
def plain_errors(url: URL) -> Iterator[None]:
    """Turn the database's errors into ours: which registry, what is wrong, what to do."""
    try:
        yield
    except PoolTimeoutError as error:
        raise RegistryUnavailableError(
            f"registry {mask(url)}: all connections are in use; try again in a moment"
        ) from error
    except DBAPIError as error:
        raise _translate(error, url) from error
    except SQLAlchemyError as error:
        raise RegistryError(f"registry {mask(url)}: {error}") from error
    except UnicodeDecodeError as error:  # what SQLite holds as text is none
        raise RegistryError(f"registry {mask(url)}: the file is damaged; {_MOVE_AWAY}") from error


def _translate(error: DBAPIError, url: URL) -> RegistryError:
    reason = str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else repr(error)
    if url.password:
        reason = reason.replace(str(url.password), "***")
    where = f"registry {mask(url)}"
    lowered = reason.lower()
    if url.get_backend_name() == "sqlite":
        if "locked" in lowered:
            return RegistryUnavailableError(
                f"{where}: another process has held it for {BUSY_TIMEOUT_SECONDS} s; "
                "wait for it or stop it, then try again"
            )
        if "full" in lowered:
            return RegistryError(f"{where}: the disk is full; free some space, then resume the run")
        if "disk i/o" in lowered:
            return RegistryError(f"{where}: {reason}; see that its disk is neither full nor broken")
        if "readonly" in lowered or "unable to open" in lowered:
            return RegistryError(
                f"{where}: {reason}; the file and its directory must exist and be writable "
                "(CARAVAN_HOME or CARAVAN_REGISTRY_URL names another place)"
            )
        if "not a database" in lowered or "malformed" in lowered:
            return RegistryError(f"{where}: {reason}; {_MOVE_AWAY}")
        return RegistryError(f"{where}: {reason}")
    if "authentication failed" in lowered or "no password supplied" in lowered:
        return RegistryError(f"{where}: {reason}; check user and password in CARAVAN_REGISTRY_URL")
    if "does not exist" in lowered and "database" in lowered:
        return RegistryError(f"{where}: {reason}; create the database or correct its name")
    if error.connection_invalidated or isinstance(error, OperationalError | InterfaceError):
        return RegistryUnavailableError(
            f"{where} cannot be reached: {reason}; "
            "check that the server runs and that CARAVAN_REGISTRY_URL is right"
        )
    return RegistryError(f"{where}: {reason}")


# --- schema -------------------------------------------------------------------------------------


def current_version(connection: Connection) -> str | None:
    """The schema's revision; None for an empty database."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()


def upgrade(url: str) -> str:
    """Create the tables or bring them to the newest schema. Returns the revision reached."""
    parsed = parse_url(url)
    _make_directory(parsed)
    engine = connect(parsed)
    try:
        with plain_errors(parsed), _one_at_a_time(parsed):
            _migrate(engine, parsed)
    finally:
        engine.dispose()
    return SCHEMA_VERSION


def ensure_schema(engine: Engine, url: URL) -> None:
    """Check that the schema is the one this code knows; create it in a new SQLite file.

    Raises:
        RegistryError: the database is empty (Postgres), older or newer than this code.
    """
    with plain_errors(url):
        with engine.connect() as connection:
            version = current_version(connection)
            absent = set(Base.metadata.tables) - set(inspect(connection).get_table_names())
        if version is None and url.get_backend_name() == "sqlite":
            with _one_at_a_time(url):
                _migrate(engine, url)
            return
    if version is None:
        raise RegistryError(
            f"registry {mask(url)} is empty; create it with: caravan registry upgrade"
        )
    if version < SCHEMA_VERSION:
        raise RegistryError(
            f"registry {mask(url)} has schema {version}, this version of caravan needs "
            f"{SCHEMA_VERSION}; back it up, then run: caravan registry upgrade"
        )
    if version > SCHEMA_VERSION:
        raise RegistryError(
            f"registry {mask(url)} has schema {version}, newer than the {SCHEMA_VERSION} that this "
            "version of caravan knows; install the newer caravan"
        )
    if absent:
        raise RegistryError(
            f"registry {mask(url)} lacks the tables {', '.join(sorted(absent))}; {_MOVE_AWAY}"
        )


def _migrate(engine: Engine, url: URL) -> None:
    from alembic import command

    with engine.connect().execution_options(write=True) as connection, connection.begin():
        version = current_version(connection)
        if version is not None and version > SCHEMA_VERSION:
            raise RegistryError(
                f"registry {mask(url)} has schema {version}, newer than the {SCHEMA_VERSION} "
                "that this version of caravan knows; install the newer caravan"
            )
        command.upgrade(alembic_config(connection), "head")


def alembic_config(connection: Connection) -> Any:
    """Alembic's configuration for this package's migrations on an open connection."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _make_directory(url: URL) -> None:
    if url.get_backend_name() != "sqlite":
        return
    directory = Path(str(url.database)).parent
    if Path(str(url.database)).is_dir():
        raise RegistryError(
            f"registry {mask(url)} is a directory; name the database file in it, or move it away"
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RegistryError(
            f"registry {mask(url)}: cannot create {directory}: {error.strerror}; "
            "CARAVAN_HOME or CARAVAN_REGISTRY_URL names another place"
        ) from error


@contextmanager
def _one_at_a_time(url: URL) -> Iterator[None]:
    """Two processes that find the same new SQLite file must not both create its tables."""
    if url.get_backend_name() != "sqlite":
        yield
        return
    try:
        descriptor = os.open(f"{url.database}.lock", os.O_CREAT | os.O_RDWR, 0o644)
    except OSError as error:
        raise RegistryError(
            f"registry {mask(url)}: {error.strerror}; its directory must be writable "
            "(CARAVAN_HOME or CARAVAN_REGISTRY_URL names another place)"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def open_engine(url: str) -> tuple[Engine, URL]:
    """An engine on a database whose schema has been checked."""
    parsed = parse_url(url)
    _make_directory(parsed)
    engine = connect(parsed)
    try:
        ensure_schema(engine, parsed)
    except BaseException:
        engine.dispose()
        raise
    return engine, parsed

"""Back the registry up into one file, and bring it back.

Artifacts lie in the store, which is backed up as the store's owner does that with buckets or
disks. The registry alone knows which runs made them.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from sqlalchemy import URL, inspect

from caravan.errors import RegistryError
from caravan.registry.database import connect, mask, parse_url, plain_errors


def backup(url: str, target: Path) -> None:
    """Write the registry as it is at one moment into the file `target`, while it is being used.

    SQLite gives another SQLite file, Postgres an archive of pg_dump.

    Raises:
        RegistryError: the file is there already, or the database cannot be read.
    """
    if target.exists():
        raise RegistryError(f"{target} exists; name a file that does not")
    parsed = parse_url(url)
    aside = target.with_name(f".{target.name}.part")
    try:
        if parsed.get_backend_name() == "sqlite":
            _copy_sqlite(Path(str(parsed.database)), aside, "the registry")
        else:
            _run(["pg_dump", "--format=custom", "--no-owner", f"--file={aside}"], parsed)
        aside.replace(target)  # no half backup looks like a whole one
    finally:
        aside.unlink(missing_ok=True)


def restore(url: str, source: Path) -> None:
    """Fill an empty registry from a backup; then `caravan registry upgrade`, if it is older.

    Raises:
        RegistryError: the registry is not empty, or the file is no backup of such a database.
    """
    if not source.is_file():
        raise RegistryError(f"{source} is not there")
    parsed = parse_url(url)
    if parsed.get_backend_name() == "sqlite":
        target = Path(str(parsed.database))
        if target.exists():
            raise RegistryError(
                f"registry {mask(parsed)} is there already; move the file away first"
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = target.with_name(f".{target.name}.part")
        try:
            _copy_sqlite(source, aside, "the backup")
            aside.replace(target)
        finally:
            aside.unlink(missing_ok=True)
        return
    _refuse_filled(parsed)
    command = ["pg_restore", "--no-owner", "--exit-on-error", "--single-transaction"]
    _run([*command, f"--dbname={parsed.database}", str(source)], parsed)


def _copy_sqlite(source: Path, target: Path, what: str) -> None:
    if not source.is_file():
        raise RegistryError(f"{source} is not there, so there is nothing to copy")
    try:
        with (
            closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True)) as opened,
            closing(sqlite3.connect(target)) as copy,
        ):
            opened.backup(copy)
            (whole,) = copy.execute("PRAGMA integrity_check").fetchone()
            known = copy.execute(
                "SELECT count(*) FROM sqlite_master WHERE name = 'alembic_version'"
            )
            if whole != "ok" or not known.fetchone()[0]:
                raise RegistryError(f"{source}: {what} is damaged, or holds no registry")
    except sqlite3.Error as error:
        raise RegistryError(f"{source}: {what} cannot be read: {error}") from error


def _refuse_filled(url: URL) -> None:
    engine = connect(url)
    try:
        with plain_errors(url), engine.connect() as connection:
            tables = inspect(connection).get_table_names()
    finally:
        engine.dispose()
    if tables:
        raise RegistryError(
            f"registry {mask(url)} is not empty; restore into a new database (createdb), then "
            "point CARAVAN_REGISTRY_URL at it"
        )


def _run(command: Sequence[str], url: URL) -> None:
    """Run one of PostgreSQL's programs on the database; its password is in no argument."""
    if shutil.which(command[0]) is None:
        raise RegistryError(
            f"{command[0]} is not installed: install PostgreSQL's client programs "
            "(postgresql-client), of the server's version or newer"
        )
    environment = {"PGHOST": url.host, "PGPORT": url.port, "PGUSER": url.username,
                   "PGDATABASE": url.database, "PGPASSWORD": url.password}  # fmt: skip
    for name, value in url.query.items():  # host=/a/socket, sslmode=require
        environment[f"PG{name.upper()}"] = value if isinstance(value, str) else value[0]
    given = {name: str(value) for name, value in environment.items() if value is not None}
    done = subprocess.run(
        list(command), env=os.environ | given, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RegistryError(f"registry {mask(url)}: {command[0]} failed: {done.stderr.strip()}")

"""Opening a registry: migrations on both databases, and errors that say what to do."""

import os
import socket
import sqlite3

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.script import ScriptDirectory

from caravan.errors import RegistryError, RegistryUnavailableError
from caravan.registry import Registry, database, upgrade
from caravan.registry.models import SCHEMA_VERSION
from forked import Script


@pytest.fixture(params=["sqlite", "postgres"])
def empty_url(request, tmp_path):
    if request.param == "postgres":
        return request.getfixturevalue("empty_postgres_url")
    return f"sqlite:///{tmp_path}/registry.db"


def connection(url):
    return database.connect(database.parse_url(url)).connect().execution_options(write=True)


def set_version(url, version):
    with connection(url) as c, c.begin():
        c.execute(sa.text("UPDATE alembic_version SET version_num = :v"), {"v": version})


def test_migrations_lead_from_an_empty_database_to_the_models(empty_url):
    assert upgrade(empty_url) == SCHEMA_VERSION
    assert upgrade(empty_url) == SCHEMA_VERSION  # nothing left to do

    with connection(empty_url) as c:
        command.check(database.alembic_config(c))  # raises when the models have drifted
    Registry(empty_url).close()


def test_migrations_can_be_taken_back(empty_url):
    upgrade(empty_url)

    with connection(empty_url) as c, c.begin():
        command.downgrade(database.alembic_config(c), "base")
        assert sa.inspect(c).get_table_names() == ["alembic_version"]


def test_the_version_in_the_code_is_the_newest_migration():
    assert ScriptDirectory(str(database.MIGRATIONS)).get_current_head() == SCHEMA_VERSION


def test_a_new_sqlite_file_is_created_by_many_processes_at_once(tmp_path):
    url = f"sqlite:///{tmp_path}/deep/registry.db"
    script = f"from caravan.registry import Registry; print(Registry({url!r}).list_runs())"
    processes = [Script(script, env=os.environ) for _ in range(4)]

    assert [p.wait() for p in processes] == [0] * 4, processes[0].stderr
    assert [p.stdout for p in processes] == ["[]\n"] * 4


def test_an_empty_postgres_database_is_not_touched(empty_postgres_url):
    with pytest.raises(RegistryError, match="is empty; create it with: caravan registry upgrade"):
        Registry(empty_postgres_url)
    with connection(empty_postgres_url) as c:
        assert sa.inspect(c).get_table_names() == []


@pytest.mark.parametrize(
    ("version", "advice"),
    [("0000", "run: caravan registry upgrade"), ("9999", "install the newer caravan")],
)
def test_another_schema_is_refused(empty_url, version, advice):
    upgrade(empty_url)
    set_version(empty_url, version)

    with pytest.raises(RegistryError, match=f"has schema {version}.*{advice}"):
        Registry(empty_url)


def test_a_newer_schema_is_not_migrated(empty_url):
    upgrade(empty_url)
    set_version(empty_url, "9999")

    with pytest.raises(RegistryError, match="install the newer caravan"):
        upgrade(empty_url)


def test_a_registry_that_does_not_answer_is_named_without_its_password():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]

    with pytest.raises(RegistryUnavailableError) as caught:
        Registry(f"postgresql://ann:s3cret@127.0.0.1:{port}/caravan")

    message = str(caught.value)
    assert f"postgresql://ann:***@127.0.0.1:{port}/caravan cannot be reached" in message
    assert "refused" in message
    assert "CARAVAN_REGISTRY_URL" in message
    assert "s3cret" not in message


def test_a_database_that_is_not_there_is_an_error_of_its_own(postgres_url):
    url = sa.make_url(postgres_url).set(database="nowhere").render_as_string(hide_password=False)

    with pytest.raises(RegistryError, match="create the database or correct its name"):
        Registry(url)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("registry.db", "cannot be read; write sqlite:///path"),
        ("mysql://ann:s3cret@host/db", "'mysql' is not supported"),
        ("sqlite://", "needs a file"),
        ("postgresql://host:port/x", "cannot be read; write sqlite:///path"),
    ],
)
def test_urls_that_cannot_be_used(url, message):
    with pytest.raises(RegistryError, match=message) as caught:
        Registry(url)
    assert "s3cret" not in str(caught.value)


def test_a_file_that_is_no_database(tmp_path):
    (tmp_path / "registry.db").write_text("these are not the tables you are looking for\n" * 100)

    with pytest.raises(
        RegistryError, match="not a database; put a backup in its place, or move it away"
    ):
        Registry(f"sqlite:///{tmp_path}/registry.db")


@pytest.mark.parametrize("damage", [b"\xff" * 16, b"!" * 16], ids=["no text", "other text"])
def test_a_file_whose_bytes_were_damaged_is_a_registry_error(tmp_path, damage):
    path = tmp_path / "registry.db"
    Registry(f"sqlite:///{path}").close()
    whole = path.read_bytes()
    start = whole.index(b"CREATE TABLE note") - 8  # after the names that stand before it
    path.write_bytes(whole[:start] + damage + whole[start + len(damage) :])

    with pytest.raises(RegistryError, match=r"registry.db: .*put a backup in its place"):
        Registry(f"sqlite:///{path}")


def test_a_schema_version_without_tables_is_no_registry(tmp_path):
    url = f"sqlite:///{tmp_path}/registry.db"
    upgrade(url)
    with connection(url) as c, c.begin():
        c.execute(sa.text("DROP TABLE tag"))
    with pytest.raises(RegistryError, match="lacks the tables tag; put a backup in its place"):
        Registry(url)


def test_a_directory_is_no_database_file(tmp_path):
    (tmp_path / "registry.db").mkdir()
    with pytest.raises(RegistryError, match=r"registry.db is a directory; name the database file"):
        Registry(f"sqlite:///{tmp_path}/registry.db")


def test_a_place_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(RegistryError, match="CARAVAN_HOME or CARAVAN_REGISTRY_URL"):
        Registry(f"sqlite:///{tmp_path}/file/registry.db")


def test_sqlite_waits_for_another_writer_and_then_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "BUSY_TIMEOUT_SECONDS", 1)
    url = f"sqlite:///{tmp_path}/registry.db"
    with Registry(url) as registry:
        other = sqlite3.connect(tmp_path / "registry.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        options = {"name": "pocket", "seed": 1, "recipe_digest": "d" * 64}
        with pytest.raises(RegistryUnavailableError, match="another process has held it for 1 s"):
            registry.create_run({}, **options)

        other.execute("ROLLBACK")
        assert registry.create_run({}, **options)


def test_sqlite_is_opened_for_many_readers_and_writers(tmp_path):
    Registry(f"sqlite:///{tmp_path}/registry.db").close()

    with connection(f"sqlite:///{tmp_path}/registry.db") as c:
        assert c.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert c.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
        assert c.exec_driver_sql("PRAGMA busy_timeout").scalar() == 30_000

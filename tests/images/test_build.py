"""images/build.sh tells each builder what it understands: stubs write down how they are called."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BUILDERS = ("podman", "buildah", "docker")
"""In the order in which they are looked for."""
STUB = """#!/bin/sh
case $1 in --version | info) exit {works} ;; esac
printf '%s\\n' "$@" >"{directory}/arguments"
echo "$DOCKER_BUILDKIT" >"{directory}/buildkit"
for argument; do
  case $argument in id=pip_conf,src=*) cp "${{argument#*src=}}" "{directory}/pip.conf" ;; esac
done
"""
INDEX = "https://reader:password@pypi.example.com/simple"


@dataclass(frozen=True)
class Call:
    arguments: list[str]
    pip_conf: str
    buildkit: str

    def given(self, option: str) -> list[str]:
        pairs = zip(self.arguments, self.arguments[1:], strict=False)
        return [value for name, value in pairs if name == option]


def build(directory: Path, builder: str, **environment: str) -> Call:
    """Build the dashboard's image with the only builder that works here."""
    for name in BUILDERS:
        stub = directory / "bin" / name
        stub.parent.mkdir(exist_ok=True)
        stub.write_text(STUB.format(works=int(name != builder), directory=directory))
        stub.chmod(0o755)
    path = f"{stub.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    ours = {"PATH": path, "PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": INDEX}
    subprocess.run(
        [ROOT / "images" / "build.sh", "dashboard"], env=ours | environment,
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    lines, pip_conf, buildkit = (
        (directory / name).read_text() for name in ("arguments", "pip.conf", "buildkit")
    )
    return Call(lines.splitlines(), pip_conf, buildkit.strip())


@pytest.mark.parametrize("builder", BUILDERS)
def test_a_builder_gets_arguments_and_secrets(builder, tmp_path):
    certificates = tmp_path / "company.crt"
    certificates.write_text("")

    call = build(
        tmp_path, builder, PIP_CERT=str(certificates), BASE="registry.example.com/debian:12",
        REGISTRY="registry.example.com/ml", TAG="1.2",
    )  # fmt: skip

    assert call.arguments[0] == "build"
    assert call.arguments[-1] == "."
    assert call.given("--file") == ["images/dashboard.Containerfile"]
    assert call.given("--tag") == ["registry.example.com/ml/dashboard:1.2"]
    base, version, revision = call.given("--build-arg")
    assert base == "BASE=registry.example.com/debian:12"
    assert version.startswith("VERSION=0.")
    assert revision.startswith("REVISION=")
    secrets = dict(secret.removeprefix("id=").split(",src=") for secret in call.given("--secret"))
    assert secrets["ca_bundle"] == str(certificates)
    assert call.pip_conf.splitlines() == [
        "[global]", "cert = /run/secrets/ca.crt", f"index-url = {INDEX}",
    ]  # fmt: skip
    assert not Path(secrets["pip_conf"]).exists()
    assert "password" not in " ".join(call.arguments)
    assert call.given("--volume") == []
    assert call.buildkit == "1"
    assert ("--layers" in call.arguments) is (
        builder == "buildah"
    )  # podman's default, no option of docker


@pytest.mark.parametrize("builder", ["podman", "buildah"])
def test_directories_of_wheels_are_mounted(builder, tmp_path):
    wheels = tmp_path / "wheels"
    wheels.mkdir()

    call = build(tmp_path, builder, PIP_FIND_LINKS=str(wheels))

    assert call.given("--volume") == [f"{wheels}:/dev/pip{wheels}:ro"]
    assert f"find-links = /dev/pip{wheels}" in call.pip_conf.splitlines()


def test_docker_which_cannot_mount_them_is_not_called(tmp_path):
    with pytest.raises(subprocess.CalledProcessError) as refused:
        build(tmp_path, "docker", PIP_FIND_LINKS=str(tmp_path))

    assert f"docker builds cannot mount {tmp_path}: serve it over HTTP" in refused.value.stderr
    assert not (tmp_path / "arguments").exists()

"""The images' sources: clean by their linters, and in step with the project's packages."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
CONTAINERFILES = sorted(ROOT.glob("**/images/*.Containerfile"))
SCRIPTS = sorted([*ROOT.glob("images/*.sh"), *ROOT.glob("tests/cluster/**/*.sh"), ROOT / ".ci/run"])
EXTRAS = {
    "stage-cpu": ["train", "pipelines", "postgres"],
    # All that a recipe may ask of a GPU: ZeRO, adapters, quantization, fused kernels.
    "stage-gpu": [
        "train",
        "train-gpu",
        "deepspeed",
        "lora",
        "qlora",
        "vllm",
        "pipelines",
        "postgres",
    ],
    "dashboard": ["dashboard", "pipelines", "postgres"],
}


def tool(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def test_the_linter_finds_nothing_in_containerfiles():
    assert {p.name for p in CONTAINERFILES} >= {f"{image}.Containerfile" for image in EXTRAS}
    # DL3008: Debian keeps only the newest version of a package, so a pinned one cannot be built.
    subprocess.run([tool("hadolint"), "--ignore", "DL3008", *map(str, CONTAINERFILES)], check=True)


def test_the_linter_finds_nothing_in_scripts():
    assert len(SCRIPTS) >= 6
    subprocess.run([tool("shellcheck"), *map(str, SCRIPTS)], check=True)


@pytest.mark.parametrize("image", EXTRAS)
def test_an_image_has_versions_that_the_project_allows(image):
    lines = (ROOT / "images" / f"{image}.txt").read_text().splitlines()
    locked = dict(line.split(";")[0].strip().split("==") for line in lines)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = list(project["dependencies"])
    for extra in EXTRAS[image]:
        wanted += project["optional-dependencies"][extra]
    renew = f"run images/lock.sh {image}"

    for requirement in map(Requirement, wanted):
        name = canonicalize_name(requirement.name)
        if name == "caravan":
            continue  # an extra that another one takes in
        assert name in locked, f"{name} is not in images/{image}.txt: {renew}"
        assert requirement.specifier.contains(locked[name]), f"{name}=={locked[name]}: {renew}"


def test_the_two_cpu_images_agree_on_versions():
    """A run launched from the dashboard must mean the same to its stages."""
    stage, dashboard = (
        dict(line.split("==") for line in (ROOT / "images" / f"{image}.txt").read_text().split())
        for image in ("stage-cpu", "dashboard")
    )
    assert {n: (stage[n], v) for n, v in dashboard.items() if n in stage and stage[n] != v} == {}

"""What a user gets wrong is said in a sentence, before anything starts or is half-written."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml


def recipe_with(mini: Path, directory: Path, **changes: object) -> Path:
    """The mini recipe with other sections, in a file of its own."""
    path = directory / "recipe.yaml"
    data = yaml.safe_load(mini.read_text())
    data["extends"] = str((mini.parent / data["extends"]).resolve())
    path.write_text(yaml.safe_dump(data | changes))
    return path


def test_an_unknown_key_comes_with_a_suggestion(caravan, mini):
    path = recipe_with(mini, caravan.directory, sft={"learning_rat": 1e-3})
    output = caravan.refused("run", str(path))

    assert "recipe.yaml" in output
    assert "sft.learning_rat" in output
    assert "learning_rate" in output
    assert not (caravan.home / "runs").exists()


def test_a_wrong_override_names_the_field(caravan, mini):
    output = caravan.refused("run", str(mini), "--set", "sft.learning_rate=fast")

    assert "sft.learning_rate" in output
    assert "fast" in output


@pytest.mark.parametrize("command", [["--dry-run"], []], ids=["dry-run", "run"])
def test_a_broken_row_is_named_with_its_file_and_field(caravan, mini, command):
    rows = [
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]},
        {"messages": [{"role": "robot", "content": "hi"}]},
    ]
    source = caravan.directory / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    origin = {"kind": "files", "paths": [str(source)]}
    own = {"name": "own", "license": "Apache-2.0", "skill": "math", "origin": origin}
    sections = {"synthesize": None, "mix": {"dataset_mixer_list": []}, "curate": {"sources": [own]}}
    path = recipe_with(mini, caravan.directory, **sections)
    data = yaml.safe_load(path.read_text())
    data["rlvr"]["skills"] = []
    path.write_text(yaml.safe_dump(data))
    output = caravan.refused("run", str(path), *command)

    assert "rows.jsonl" in output
    assert "row 2" in output
    assert "robot" in output
    if not command:
        log = caravan("logs").stdout
        assert "robot" in log
        assert not re.search(r"KFP Executor|executor_input|RuntimeWarning|outputs:|uri=", log)
        (whole,) = (text.read_text() for text in (caravan.home / "runs").glob("*/log.txt"))
        assert "pipeline_orchestrator.py" not in whole
        assert "\x1b" not in whole
        assert re.search(
            r"\nrun \S+ failed: Pipeline '\S+' finished with status FAILURE.*\n$", whole
        )


def test_a_registry_that_cannot_be_reached_is_named_without_its_password(tmp_path, mini, command):
    url = "postgresql://ann:secret@127.0.0.1:9/caravan"
    output = command(tmp_path, CARAVAN_REGISTRY_URL=url).refused("run", str(mini))

    assert "127.0.0.1:9" in output
    assert "secret" not in output


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)], check=True)
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_read_only_store_is_refused_before_the_first_stage(tmp_path, mini, small_disk, command):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    caravan = command(tmp_path, CARAVAN_STORE_URL=str(small_disk / "store"))
    output = caravan.refused("run", str(mini))

    assert str(small_disk) in output
    assert "read-only" in output.lower()
    assert not list((caravan.home / "runs").iterdir())


def test_a_full_disk_leaves_nothing_half_written(tmp_path, mini, small_disk, command):
    (small_disk / "filler").write_bytes(b"x" * 1_000_000)
    caravan = command(tmp_path, CARAVAN_STORE_URL=str(small_disk / "store"))
    output = caravan.refused("run", str(mini))

    assert "space" in output.lower()
    assert str(small_disk) in output
    assert not list((small_disk / "store").rglob("rows.jsonl"))


def test_a_full_disk_of_runs_is_named_before_one_starts(tmp_path, mini, small_disk, command):
    (small_disk / "filler").write_bytes(b"x" * 2**20)
    caravan = command(
        tmp_path,
        CARAVAN_HOME=str(small_disk / "home"),
        CARAVAN_STORE_URL=str(tmp_path / "store"),
        CARAVAN_REGISTRY_URL=f"sqlite:///{tmp_path}/registry.db",
    )
    output = caravan.refused("run", str(mini))

    assert f"{small_disk}/home/runs" in output
    assert "No space left on device; free some space" in output

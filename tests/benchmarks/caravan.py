"""Runs the `caravan` command in a directory of its own."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

COMMAND = [sys.executable, "-c", "from caravan_pipelines.cli import main; main()"]
ROOT = Path(__file__).resolve().parents[2]
POCKET = ROOT / "pipelines" / "recipes" / "pocket.yaml"
MINI = ROOT / "tests" / "recipes" / "pocket-mini.yaml"


class Measured(NamedTuple):
    shown: dict[str, Any]
    """What `caravan show --json` says of the run."""
    seconds: float
    peak_mib: float
    """Largest resident set of one process of the run."""


def run(home: Path, recipe: Path, *options: str) -> Measured:
    """Run a recipe to its end."""
    environment = os.environ | {"CARAVAN_HOME": str(home)}
    start = time.perf_counter()
    subprocess.run(
        [*COMMAND, "run", str(recipe), *options], env=environment, check=True, stdout=sys.stderr
    )
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    shown = subprocess.run(
        [*COMMAND, "show", "latest", "--json"], env=environment, check=True, capture_output=True
    )
    return Measured(json.loads(shown.stdout), seconds, peak)

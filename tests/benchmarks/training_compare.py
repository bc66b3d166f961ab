"""Caravan and TRL at the same work, taking turns, each side in a process of its own."""

from __future__ import annotations

import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
from contextlib import ExitStack
from datetime import date
from pathlib import Path
from typing import Any

from tests.benchmarks import training_work as w
from tests.benchmarks.turns import spread

ROOT = Path(__file__).resolve().parents[2]
REPETITIONS = 5
STEPS = 10
"""Of a repetition; the first two are not measured."""
WARM_UP = 2
TOLERANCE = 1e-5
"""Relative difference of the first step in float32."""


class Side:
    """A process that trains when it is told to: a module of this package with its arguments."""

    def __init__(self, *arguments: str, module: str = "training_side") -> None:
        # Waiting threads sleep, or they would be counted as if they worked.
        environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "TQDM_DISABLE": "1"}
        path = os.environ.get("PYTHONPATH", "")
        environment |= {"PYTHONPATH": f"{ROOT}{os.pathsep}{path}"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", f"tests.benchmarks.{module}", *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env=environment,
        )  # fmt: skip

    def train(self, steps: int) -> dict[str, Any]:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("MARKS "):
                return dict(json.loads(line.removeprefix("MARKS ")))
        raise RuntimeError(f"{self.process.args}: ended without a result")

    def __enter__(self) -> Side:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def compare(task: str, work: str, sides: list[str]) -> None:
    """Print a table, the first of `sides` against the others."""
    equal_first_step(task, work)
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    with ExitStack() as stack:
        processes = {side: stack.enter_context(Side(task, side, work)) for side in sides}
        for _ in range(REPETITIONS + 1):
            for side, process in processes.items():
                found[side].append(process.train(STEPS))
    unit, amount = ("tokens", "tokens") if task == "sft" else ("pairs", "rows")
    ours = [run[amount] / run["seconds"] for run in found[sides[0]][1:]]
    print(f"{w.WORK[work]}, {STEPS - WARM_UP} steps, {REPETITIONS} repetitions\n")
    print(f"| side | {unit} per CPU-second | Caravan over it | reference pass, CPU-s | peak MiB |")
    print("|---|---|---|---|---|")
    for side, runs in found.items():
        rates = [run[amount] / run["seconds"] for run in runs[1:]]
        ratios = [mine / theirs for mine, theirs in zip(ours, rates, strict=True)]
        passes = statistics.median(run["preparation"] for run in runs[1:])
        print(
            f"| {side} | {spread(rates, 1)} | {spread(ratios, 2)} | {passes:.2f} "
            f"| {runs[0]['peak_mib']:.0f}, of which {runs[0]['start_mib']:.0f} before training |"
        )
    print(conditions(), flush=True)


def equal_first_step(task: str, work: str) -> None:
    """In float32 both sides begin with the same loss and log-probabilities."""
    first = []
    for side in ("caravan-fp32", "trl-fp32"):
        with Side(task, side, work) as process:
            first.append(process.train(WARM_UP + 1)["first"])
    ours, theirs = first
    for name, value in theirs.items():
        difference = abs(ours[name] - value) / abs(value)
        assert difference <= TOLERANCE, f"{name}: {ours[name]} and {value}"
        print(f"first step in float32, {name}: {ours[name]:.6f}, TRL {value:.6f}")
    print(flush=True)


def conditions() -> str:
    """When, with what and on how many threads it was measured."""
    versions = {name: importlib.metadata.version(name) for name in ("trl", "transformers", "torch")}
    return f"\n{date.today()}, {versions}, {os.environ.get('OMP_NUM_THREADS', '1')} thread(s)"

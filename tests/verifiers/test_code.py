"""The code verifier and the sandbox under it: real processes."""

from __future__ import annotations

import gzip
import json
import os
import sys
from pathlib import Path

import pytest

from caravan.verifiers import VerifierError, sandbox, verify
from caravan.verifiers.sandbox import run_python

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
HUMANEVAL = Path(os.environ.get("CARAVAN_TEST_DATA", SHARED)) / "eval/humaneval/HumanEval.jsonl.gz"


def test_a_right_program_passes_and_a_wrong_one_does_not() -> None:
    completion = "Here:\n```python\ndef add(a, b):\n    return a + b\n```\nDone."
    assert verify("code", completion, "assert add(1, 2) == 3").correct
    assert not verify(
        "code", completion, ["assert add(1, 2) == 3", "assert add(1, 1) == 3"]
    ).correct
    assert verify("code", "def add(a, b): return a + b", "assert add(1, 2) == 3").correct


@pytest.mark.parametrize("completion", ["    return a + b\n", "def add(a, b):\n    return a + b"])
def test_humaneval_takes_a_body_or_a_function(completion: str) -> None:
    truth = {
        "prompt": "import math\n\ndef add(a, b):\n",
        "test": "def check(candidate):\n    assert candidate(1, 2) == math.floor(3.5)\n",
        "entry_point": "add",
    }
    assert verify("code", completion, truth).correct
    assert not verify("code", completion.replace("+", "-"), truth).correct


@pytest.mark.parametrize(
    "program",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "raise SystemExit",
        "x = 'a' * (4 << 30)",
        "import socket\nsocket.create_connection(('127.0.0.1', 9), timeout=1)",
        "def",
        "def f(): f()\nf()",
        "open('big', 'wb').write(b'x' * (64 << 20))",
    ],
)
def test_leaving_early_or_reaching_too_far_is_not_passing(program: str) -> None:
    outcome = run_python(program, timeout_seconds=60, memory_mib=512)
    assert (outcome.passed, outcome.reason) == (False, "failed")


def test_a_program_that_does_not_end_is_ended_with_its_children() -> None:
    program = """
import os
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        break
while True:
    pass
"""
    outcome = run_python(program, timeout_seconds=1, memory_mib=512)
    assert outcome.reason == "timeout"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has something to drop")
def test_root_is_dropped_and_the_standard_library_still_there() -> None:
    outcome = run_python(
        "import os, json, sqlite3, decimal, collections.abc\nprint(os.getuid())",
        timeout_seconds=60,
        memory_mib=512,
    )
    assert outcome.passed
    assert outcome.output.strip() in ("65534", "0")


def test_the_environment_stays_outside_and_numpy_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SECRET", "1")
    program = "import os, numpy\nassert 'SECRET' not in os.environ\nnumpy.eye(2)"
    assert run_python(program, timeout_seconds=60, memory_mib=1024).passed


def test_a_sandbox_that_cannot_start_says_nothing_about_the_program(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    with pytest.raises(VerifierError, match="cannot start the sandbox"):
        verify("code", "x = 1", "assert x")
    monkeypatch.undo()
    monkeypatch.setattr(sandbox, "_CHILD", tmp_path / "no-child.py")
    with pytest.raises(VerifierError, match="did not start"):
        verify("code", "x = 1", "assert x")


@pytest.mark.skipif(not HUMANEVAL.exists(), reason=f"{HUMANEVAL} is not here")
def test_the_canonical_solutions_of_humaneval_pass() -> None:
    with gzip.open(HUMANEVAL, "rt") as lines:
        rows = [json.loads(line) for line in lines]
    assert len(rows) == 164
    failed = [r["task_id"] for r in rows if not verify("code", r["canonical_solution"], r).correct]
    assert failed == []

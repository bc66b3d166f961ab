"""Programs, run against tests in a sandbox.

    completion:   "Here it is:\\n```python\\ndef add(a, b):\\n    return a + b\\n```"
    ground truth: "assert add(1, 2) == 3"     (a program, or a list of its parts), or HumanEval's
                  {"prompt": "def add(a, b):\\n", "test": "def check(candidate): ...",
                   "entry_point": "add"}

Three outcomes: the tests pass, they do not (wrong, an exception, too slow, too much memory), or
`VerifierError` when the sandbox itself failed. `caravan.verifiers.sandbox` says what confines the
program. It stops mistakes and the usual misbehaviour of generated code; it is no boundary against
an attacker who knows it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from caravan.errors import DataError
from caravan.verifiers.sandbox import run_python
from caravan.verifiers.verdict import Verdict

TIMEOUT_SECONDS = 10.0
MEMORY_MIB = 1024

_FENCE = re.compile(r"```[ \t]*(?:python|py|python3)?[ \t]*\n(.*?)(?:```|\Z)", re.S | re.I)


def extract_program(completion: str) -> str:
    """The fenced blocks of the completion joined, or all of it where there is no fence."""
    blocks = _FENCE.findall(completion)
    return "\n\n".join(blocks) if blocks else completion


def verify(completion: str, ground_truth: Any) -> Verdict:
    """Whether the program in the completion passes the tests.

    Raises:
        VerifierError: the sandbox could not run it.
    """
    program = extract_program(completion)
    if isinstance(ground_truth, Mapping):
        source = _humaneval(program, completion, ground_truth)
    elif isinstance(ground_truth, str):
        source = f"{program}\n\n{ground_truth}\n"
    elif isinstance(ground_truth, Sequence) and ground_truth:
        source = "\n".join((program, "", *map(str, ground_truth), ""))
    else:
        raise DataError(f"code: ground truth {ground_truth!r} is no program to test with")
    outcome = run_python(source, timeout_seconds=TIMEOUT_SECONDS, memory_mib=MEMORY_MIB)
    return Verdict(outcome.passed, float(outcome.passed), program.strip())


def _humaneval(program: str, completion: str, truth: Mapping[str, Any]) -> str:
    """The program with the task's preamble, or, where it is a body alone, after the signature."""
    entry_point, prompt = str(truth["entry_point"]), str(truth["prompt"])
    if re.search(rf"^\s*(?:async )?def {re.escape(entry_point)}\b", program, re.M):
        preamble = prompt[: prompt.index(f"def {entry_point}")]
        body = f"{preamble}\n{program}"
    else:
        body = prompt + (program if _FENCE.search(completion) else completion)
    return f"{body}\n\n{truth['test']}\n\ncheck({entry_point})\n"

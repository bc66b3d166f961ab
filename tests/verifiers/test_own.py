"""Verifiers of one's own: functions in files that a recipe names, asked in processes of theirs."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from caravan.errors import RecipeError
from caravan.recipe.verifiers import unfit
from caravan.verifiers import OwnVerifier, VerifierError, own, own_verifiers

Make = Callable[[str], OwnVerifier]


@pytest.fixture
def verifier(tmp_path: Path) -> Iterator[Make]:
    """Writes a file and starts its function `verify`."""
    with ExitStack() as stack:

        def make(code: str) -> OwnVerifier:
            (tmp_path / "own.py").write_text(code)
            return stack.enter_context(own_verifiers({"own": "own.py"}, tmp_path))["own"]

        yield make


def test_a_function_says_whether_or_how_far_a_completion_is_right(verifier: Make) -> None:
    same = verifier("def verify(completion, truth):\n    return completion == truth\n")
    assert same("a", "a").correct
    assert (same("b", "a").correct, same("b", "a").score) == (False, 0.0)

    share = verifier(
        "import numpy as np\n"
        "def verify(completion, truth):\n"
        "    return np.mean([word in completion for word in truth['words']])\n"
    )
    verdict = share("salt and camels", {"words": ["salt", "gold"]})
    assert (verdict.correct, verdict.score) == (False, 0.5)
    assert share("gold, salt", {"words": ["salt", "gold"]}).correct


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return {}[truth]", r"own\.py: verify: KeyError: 'a' \(line 3\)"),
        ("return 'yes'", "returned 'yes', not True, False or a score from 0 to 1"),
        ("return None", "returned None, not True"),
        ("return 1.5", "returned 1.5, not True"),
        ("return float('nan')", "returned nan, not True"),
        ("raise SystemExit(3)", r"its process ended \(exit status 3\)"),
        ("import os; os.abort()", r"its process ended \(exit status -6\)"),
        ("while True: pass", "took more than 0.5 seconds"),
    ],
)
def test_a_call_that_fails_says_why_and_the_next_one_is_answered(
    verifier: Make, monkeypatch: pytest.MonkeyPatch, body: str, message: str
) -> None:
    monkeypatch.setattr(own, "CALL_SECONDS", 0.5)
    failing = verifier(
        "def verify(completion, truth):\n"
        "    if completion == 'fail':\n"
        f"        {body}\n"
        "    return True\n"
    )
    with pytest.raises(VerifierError, match=message):
        failing("fail", "a")
    assert failing("go on", "a").correct


def test_what_a_function_prints_and_reads_does_not_disturb(verifier: Make) -> None:
    chatty = verifier(
        "import sys\n"
        "print('hello')\n"
        "def verify(completion, truth):\n"
        "    print('{}')\n"
        "    return sys.stdin.read() == '' and completion == truth\n"
    )
    assert chatty("one\nline\u2028more \ud83d", "one\nline\u2028more \ud83d").correct


def test_caravans_credentials_are_not_handed_on(
    verifier: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CARAVAN_S3_SECRET_KEY", "secret")
    seeing = verifier("import os\ndef verify(completion, truth):\n    return truth in os.environ\n")
    assert seeing("", "HOME").correct
    assert not seeing("", "CARAVAN_S3_SECRET_KEY").correct


def test_several_threads_are_answered_at_once(verifier: Make) -> None:
    slow = verifier(
        "import time\n"
        "def verify(completion, truth):\n"
        "    time.sleep(0.5)\n"
        "    return completion == truth\n"
    )
    started = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        verdicts = list(pool.map(slow, "aabb", "abab"))
    assert [v.correct for v in verdicts] == [True, False, False, True]
    assert time.monotonic() - started < 1.5


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import no_such_package\ndef verify(c, t): pass\n",
         r"verifiers\.own: .*own\.py: ModuleNotFoundError: No module named 'no_such_package' "
         r"\(line 1\); correct the file"),
        ("from math import pi\nimport sys\nsys.exit(4)\n", r"its process ended \(exit status 4\)"),
        ("other = 1\n", "AttributeError: module 'own_verifier' has no attribute 'verify'"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_imported_is_named(verifier: Make, code: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        verifier(code)


@pytest.mark.parametrize(
    ("code", "named", "message"),
    [
        (None, "own.py", "cannot read .*own.py: No such file"),
        ("def verify(c, t) return 1\n", "own.py", r"own\.py is not Python: .*line 1"),
        (
            "def check(c, t): ...\n",
            "own.py",
            r"has no function 'verify', but check; write def verif",
        ),
        (
            "x = 1\n",
            "own.py:check",
            r"no function 'check', but none; write def check\(completion, ",
        ),
        (
            "def verify(c): ...\n",
            "own.py",
            r"'verify' with other arguments; it is called as verify\(",
        ),
        ("def verify(c, t, *, k): ...\n", "own.py", "with other arguments"),
        ("def verify(a, b, c): ...\n", "own.py", "with other arguments"),
    ],
)
def test_a_recipe_is_told_what_its_file_lacks(
    tmp_path: Path, code: str | None, named: str, message: str
) -> None:
    if code is not None:
        (tmp_path / "own.py").write_text(code)
    ((name, told),) = unfit({"own": named}, tmp_path)
    assert name == "own"
    assert re.search(message, told)


@pytest.mark.parametrize(
    "code",
    [
        "def verify(c, t, limit=3, **more): ...\n",
        "def verify(*both): ...\n",
        "from json import loads as verify\n",
        "verify = lambda c, t: c == t\n",
        "raise SystemExit  # reading a recipe runs nothing\ndef verify(c, t): ...\n",
    ],
)
def test_reading_a_recipe_finds_the_function_without_running_the_file(
    tmp_path: Path, code: str
) -> None:
    (tmp_path / "own.py").write_text(code)
    assert not list(unfit({"own": "own.py:verify"}, tmp_path))

"""Verifiers of one's own: functions in files that a recipe names, asked in processes of theirs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from caravan.errors import RecipeError
from caravan.recipe.verifiers import unfit
from caravan.verifiers import OwnVerifier, VerifierError, own, own_verifiers
from waiting import wait_until

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
        ("return {}[truth]", r"own\.py: verify: KeyError: 'a' \(line 4\)"),
        ("return 'yes'", "returned 'yes', not True, False or a score from 0 to 1"),
        ("return None", "returned None, not True"),
        ("return 1.5", "returned 1.5, not True"),
        ("return float('nan')", "returned nan, not True"),
        ("raise SystemExit(3)", r"its process ended \(exit status 3\)"),
        ("import os; os.abort()", r"its process ended \(exit status -6\)"),
        ("while True: pass", "took more than 0.5 seconds"),
        # What has its own alarm, and what leaves a process behind that keeps the pipes open.
        ("import signal; signal.alarm(9); signal.alarm(0); time.sleep(9)", "took more than 0.5"),
        ("os.fork(); time.sleep(9)", "took more than 0.5 seconds"),
        ("os.fork() or time.sleep(9); os._exit(5)", "took more than 0.5 seconds"),
        ("os.write(4, b'{}\\n'); time.sleep(9)", "took more than 0.5|answer that is none"),
    ],
)
def test_a_call_that_fails_says_why_and_the_next_one_is_answered(
    verifier: Make, monkeypatch: pytest.MonkeyPatch, body: str, message: str
) -> None:
    if "0.5" in message:
        monkeypatch.setattr(own, "CALL_SECONDS", 0.5)
    failing = verifier(
        "import os, time\n"
        "def verify(completion, truth):\n"
        "    if completion == 'fail':\n"
        f"        {body}\n"
        "    return True\n"
    )
    with pytest.raises(VerifierError, match=message):
        failing("fail", "a")
    monkeypatch.undo()
    assert failing("go on", "a").correct


def test_a_file_that_is_edited_meanwhile_counts_in_the_next_stage_alone(
    verifier: Make, tmp_path: Path
) -> None:
    first = verifier(
        "import time\ndef verify(completion, truth):\n    return time.sleep(0.1) is None\n"
    )
    second = "def verify(completion, truth):\n    raise SystemExit(3)\n"
    (tmp_path / "own.py").write_text(second)
    with ThreadPoolExecutor(8) as pool:  # several processes, most of them started after the edit
        assert all(verdict.correct for verdict in pool.map(first, "a" * 32, "a" * 32))
    with pytest.raises(VerifierError, match="exit status 3"):
        verifier(second)("a", "a")


def test_what_a_function_prints_and_reads_does_not_disturb(verifier: Make) -> None:
    chatty = verifier(
        "import sys\n"
        "print('hello')\n"
        "def verify(completion, truth):\n"
        "    print('{}')\n"
        "    return sys.stdin.read() == '' and completion == truth\n"
    )
    assert chatty("one\nline\u2028more \ud83d", "one\nline\u2028more \ud83d").correct


def test_what_a_function_starts_has_no_hold_on_the_stage(
    verifier: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    starting = verifier(
        "import os, subprocess, sys\n"
        "def verify(completion, truth):\n"
        "    os.write(2, b'caf\\xe9\\n')\n"
        "    started = subprocess.Popen(['sleep', '60'])\n"
        "    open(completion, 'w').write(str(started.pid))\n"
        "    return all(os.readlink(f'/proc/{started.pid}/fd/{n}') != truth for n in (1, 2))\n"
    )
    pid = Path(tempfile.mkdtemp()) / "pid"
    assert starting(str(pid), os.readlink("/proc/self/fd/2")).correct
    starting.close()
    wait_until(lambda: not Path(f"/proc/{pid.read_text()}/cmdline").exists())
    assert "caf\\xe9" in capfd.readouterr().err


def test_a_call_ends_with_a_stage_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import os\n"
        "def verify(completion, truth):\n"
        "    open(truth, 'w').write(str(os.getpid()))\n"
        "    while True: pass\n"
    )
    pid = tmp_path / "pid"
    asking = (
        "import sys; from pathlib import Path; from caravan.verifiers import OwnVerifier\n"
        f"OwnVerifier(Path({str(tmp_path / 'own.py')!r}), 'verify')('', {str(pid)!r})"
    )
    stage = subprocess.Popen([sys.executable, "-c", asking])
    wait_until(lambda: pid.exists() and pid.read_text())
    stage.kill()
    stage.wait()
    wait_until(lambda: not Path(f"/proc/{pid.read_text()}").exists())


def test_closing_ends_what_is_still_asked(
    verifier: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own, "CALL_SECONDS", 120.0)
    slow = verifier(
        "import time\n"
        "def verify(completion, truth):\n"
        "    open(truth, 'w').close()\n"
        "    time.sleep(600)\n"
    )
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(slow, "", str(tmp_path / "begun"))
        wait_until((tmp_path / "begun").exists)
        slow.close()
        with pytest.raises(VerifierError, match="its process ended"):
            asked.result(60)


def test_caravans_credentials_are_not_handed_on(
    verifier: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CARAVAN_S3_SECRET_KEY", "secret")
    seeing = verifier("import os\ndef verify(completion, truth):\n    return truth in os.environ\n")
    assert seeing("", "HOME").correct
    assert not seeing("", "CARAVAN_S3_SECRET_KEY").correct


def test_several_threads_are_answered_at_once(
    verifier: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call waits for the three others."""
    monkeypatch.setattr(own, "CALL_SECONDS", 120.0)
    waiting = verifier(
        "import os, time\n"
        "def verify(completion, truth):\n"
        "    directory, right = truth\n"
        "    open(f'{directory}/{os.getpid()}', 'w').close()\n"
        "    while len(os.listdir(directory)) < 4:\n"
        "        time.sleep(0.02)\n"
        "    return completion == right\n"
    )
    asked = tmp_path / "asked"
    asked.mkdir()
    truths = [(str(asked), right) for right in "abab"]
    with ThreadPoolExecutor(4) as pool:
        verdicts = list(pool.map(waiting, "aabb", truths))
    assert [v.correct for v in verdicts] == [True, False, False, True]


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

"""Runs a Python program it does not trust.

In a process of its own: an empty environment, a temporary directory, limits on CPU time, memory,
file size, open files and processes; no network where the kernel lets us unshare it; as `nobody`
where we are root. A program has passed when it ran to its end: leaving early, with whatever exit
status, is not passing. The whole process group is killed afterwards.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from caravan.verifiers.verdict import VerifierError

_CHILD = Path(__file__).with_name("sandbox_child.py")
_OUTPUT_BYTES = 4000


@dataclass(frozen=True, slots=True)
class Outcome:
    passed: bool
    reason: Literal["passed", "failed", "timeout"]
    output: str
    """The end of what it printed, for people to look at."""


def run_python(source: str, *, timeout_seconds: float, memory_mib: int) -> Outcome:
    """Run `source` to its end.

    Raises:
        VerifierError: the sandbox could not be set up, so nothing is known about the program.
    """
    token = secrets.token_hex(16)
    limits = f"{token} {int(timeout_seconds) + 1} {memory_mib << 20}\n{_site_packages()}\n"
    with tempfile.TemporaryDirectory(prefix="caravan-code-", ignore_cleanup_errors=True) as work:
        os.chmod(work, 0o777)
        report, report_child = os.pipe()
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_CHILD), str(report_child)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=work,
                env={
                    "PATH": "/usr/bin:/bin",
                    "HOME": work,
                    "LANG": "C.UTF-8",
                    "OPENBLAS_NUM_THREADS": "1",
                },
                pass_fds=(report_child,),
                start_new_session=True,
            )
        except OSError as error:
            os.close(report)
            raise VerifierError(f"code: cannot start the sandbox: {error}") from error
        finally:
            os.close(report_child)
        with os.fdopen(report, "rb") as reports:
            timed_out, output = _communicate(process, limits + source, timeout_seconds)
            said = reports.read(200).decode(errors="replace").split()
    if not said or said[0] != "ready":
        detail = " ".join(said) or output.strip() or f"exit status {process.returncode}"
        raise VerifierError(f"code: the sandbox did not start: {detail}")
    if timed_out:
        return Outcome(False, "timeout", output)
    passed = token in said[1:]
    return Outcome(passed, "passed" if passed else "failed", output)


@cache
def _site_packages() -> str:
    """Where numpy is, which some benchmarks' tests import; empty where it is not installed."""
    spec = find_spec("numpy")
    return str(Path(spec.origin).parent.parent) if spec and spec.origin else ""


def _communicate(
    process: subprocess.Popen[bytes], source: str, timeout_seconds: float
) -> tuple[bool, str]:
    """Feed and await the process; then kill all that it started."""
    output = b""
    timed_out = False
    try:
        output, _ = process.communicate(source.encode("utf-8", "replace"), timeout=timeout_seconds)
    except subprocess.TimeoutExpired:
        timed_out = True
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired, ValueError):
            output = process.communicate(timeout=5)[0] or output
    return timed_out, output[-_OUTPUT_BYTES:].decode(errors="replace")

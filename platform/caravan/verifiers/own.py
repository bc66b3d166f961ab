"""Verifiers of one's own: Python functions that a recipe names.

    def verify(completion, ground_truth):
        return completion.endswith(ground_truth)      # or a score from 0 to 1

Each runs in processes of its own, which all import the file as it was when the stage began: an
exception, a crash or a call that takes too long costs one verdict, not the stage. The clock is on
our side, since a function may use its process's alarm, or leave processes behind that keep its
pipes open. They have none of Caravan's variables, but the rights of the stage; unlike the sandbox,
this confines nothing.
"""

from __future__ import annotations

import base64
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import IO, Any

from caravan.errors import RecipeError
from caravan.recipe.verifiers import file_and_function
from caravan.verifiers.verdict import Verdict, VerifierError

IMPORT_SECONDS = 60.0
CALL_SECONDS = 10.0

_CHILD = Path(__file__).with_name("own_child.py")


class OwnVerifier:
    """A `Verifier` that asks processes; several threads may, each then has one of its own."""

    def __init__(self, path: Path, function: str) -> None:
        self._path, self._function = path.resolve(), function
        self._source: bytes | None = None
        self._idle: list[_Process] = []
        self._all: list[_Process] = []

    def __call__(self, completion: str, ground_truth: Any) -> Verdict:
        try:
            process = self._idle.pop()
        except IndexError:
            process = self._started()
        answer = process.ask({"completion": completion, "ground_truth": ground_truth})
        self._idle.append(process)  # one that has ended raised
        if "error" in answer:
            raise VerifierError(f"{self._path.name}: {self._function}: {answer['error']}")
        return Verdict(answer["result"] == 1, answer["result"])

    def start(self) -> None:
        """Import the file, so that it is known that the function is there.

        Raises:
            VerifierError: it is not.
        """
        self._idle.append(self._started())

    def close(self) -> None:
        for process in self._all:
            process.kill()  # one that is still asked is closed by who asks
        while self._idle:
            self._idle.pop().close()

    def _started(self) -> _Process:
        if self._source is None:
            try:
                self._source = self._path.read_bytes()
            except OSError as error:
                raise VerifierError(f"cannot read {self._path}: {error.strerror}") from error
        process = _Process(self._path, self._function, self._source)
        self._all.append(process)
        return process


@contextmanager
def own_verifiers(named: Mapping[str, str], recipe_dir: Path) -> Iterator[dict[str, OwnVerifier]]:
    """The verifiers that a recipe names, started; their processes end with the context.

    Raises:
        RecipeError: one cannot be imported; says which, and why.
    """
    made = {name: OwnVerifier(*file_and_function(n, recipe_dir)) for name, n in named.items()}
    try:
        for name, verifier in made.items():
            try:
                verifier.start()
            except VerifierError as error:
                raise RecipeError(f"verifiers.{name}: {error}") from error
        yield made
    finally:
        for verifier in made.values():
            verifier.close()


class _Process:
    """A process that has imported the file and answers; it ends with its stdin.

    It is given what the file holds: one that is started late must not read it edited.
    """

    def __init__(self, path: Path, function: str, source: bytes) -> None:
        self._name = f"{path.name}: {function}"
        self._read = b""
        home = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-B", str(_CHILD), str(path), function],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=tempfile.gettempdir(),
                env={**home, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"},
                start_new_session=True,  # what it starts is ended with it
            )
        except OSError as error:
            raise VerifierError(f"{self._name}: cannot start its process: {error}") from error
        Thread(target=_relay, args=(self._process.stderr,), daemon=True).start()
        self._tell({"source": base64.b64encode(source).decode()})
        answer = self._answer(IMPORT_SECONDS)
        if "error" in answer:
            self.close()
            raise VerifierError(f"{path}: {answer['error']}; correct the file")

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        self._tell(request)
        answer = self._answer(CALL_SECONDS)
        if not answer.keys() & {"result", "error"}:
            raise self._ended("gave an answer that is none")
        return answer

    def _tell(self, what: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, which its answer says
            self._process.stdin.write(json.dumps(what).encode() + b"\n")
            self._process.stdin.flush()

    def _answer(self, seconds: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        ready = select.poll()
        ready.register(pipe, select.POLLIN)
        until = time.monotonic() + seconds
        while b"\n" not in self._read:
            if not ready.poll(max(0.0, until - time.monotonic()) * 1000):
                raise self._ended(f"took more than {seconds:g} seconds")
            if not (more := os.read(pipe, 1 << 16)):
                with suppress(subprocess.TimeoutExpired):  # how it ended is known in a moment
                    self._process.wait(1.0)
                status = self._process.returncode
                raise self._ended(f"its process ended (exit status {status})")
            self._read += more
        line, _, self._read = self._read.partition(b"\n")
        try:
            return dict(json.loads(line))
        except ValueError as error:
            raise self._ended("gave an answer that is none") from error

    def _ended(self, why: str) -> VerifierError:
        self.close()
        return VerifierError(f"{self._name}: {why}")

    def kill(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> None:
        self.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()


def _relay(stderr: IO[bytes]) -> None:
    """Print what a verifier prints. It is not given our own stderr: what it starts might keep that
    open for ever, and its bytes need not be text."""
    for line in stderr:
        print(line.decode(errors="backslashreplace").rstrip("\n"), file=sys.stderr, flush=True)

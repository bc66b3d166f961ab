"""Verifiers of one's own: Python functions that a recipe names.

    def verify(completion, ground_truth):
        return completion.endswith(ground_truth)      # or a score from 0 to 1

Each runs in processes of its own, which import the file once: an exception, a crash or a call
that takes too long costs one verdict, not the stage. They have none of Caravan's variables, but
the rights of the stage; unlike the sandbox, this confines nothing.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

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
        self._idle: list[_Process] = []

    def __call__(self, completion: str, ground_truth: Any) -> Verdict:
        try:
            process = self._idle.pop()
        except IndexError:
            process = _Process(self._path, self._function)
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
        self._idle.append(_Process(self._path, self._function))

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()


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
    """A process that has imported the file and answers; it ends with its stdin."""

    def __init__(self, path: Path, function: str) -> None:
        self._name = f"{path.name}: {function}"
        arguments = [str(path), function, str(IMPORT_SECONDS), str(CALL_SECONDS)]
        home = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-B", str(_CHILD), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=tempfile.gettempdir(),
                env={**home, "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"},
                start_new_session=True,  # all that it starts is ended with it
            )
        except OSError as error:
            raise VerifierError(f"{self._name}: cannot start its process: {error}") from error
        answer = self._answer(IMPORT_SECONDS)
        if "error" in answer:
            self.close()
            raise VerifierError(f"{path}: {answer['error']}; correct the file")

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it has ended, which its answer says
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        return self._answer(CALL_SECONDS)

    def _answer(self, seconds: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if line:
            return dict(json.loads(line))
        with suppress(subprocess.TimeoutExpired):  # how it ended is known in a moment
            self._process.wait(1.0)
        status = self._process.returncode
        self.close()
        if status == -signal.SIGALRM:
            raise VerifierError(f"{self._name}: took more than {seconds:g} seconds")
        raise VerifierError(f"{self._name}: its process ended (exit status {status})")

    def close(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()

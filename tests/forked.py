"""Run scripts in processes of their own, without the second of imports that each would take.

The processes are forked from a server that has imported what they need and nothing else has
touched; they are killed, signalled and waited for like any other.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

PRELOADED = ["pytest", "caravan.stages.execute", "caravan.recipe", "caravan.store.s3", "minio",
             "psycopg", "sqlalchemy.dialects.postgresql.psycopg", "alembic.command",
             "alembic.config", "numpy"]  # fmt: skip
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(PRELOADED)


class Script:
    """A running script; like `subprocess.Popen`, as far as tests need it."""

    def __init__(self, script: str, *arguments: str, env: Mapping[str, str]) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="caravan-script-"))
        self._process = _context.Process(
            target=_run, args=(textwrap.dedent(script), arguments, dict(env), self._directory)
        )
        with _bare_main():
            self._process.start()

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float = 120) -> int:
        self._process.join(timeout)
        assert self._process.exitcode is not None, "still running"
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def send_signal(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    @property
    def stdout(self) -> str:
        return (self._directory / "1").read_text()

    @property
    def stderr(self) -> str:
        return (self._directory / "2").read_text()


@contextmanager
def _bare_main() -> Iterator[None]:
    """Keep a process from importing what is the main module here: pytest, or a page of the
    dashboard that a test has drawn, with all that it takes."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _run(
    script: str, arguments: tuple[str, ...], environment: dict[str, str], directory: Path
) -> None:
    gc.freeze()  # a collection would touch, and so copy, all memory that the processes share
    for number in (1, 2):
        os.dup2(os.open(directory / str(number), os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["script", *arguments]
    exec(compile(script, "script", "exec"), {"__name__": "script"})

"""The dashboard's server, as a process of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

SECONDS_TO_START = 120


@contextmanager
def running(
    command: Callable[[int], list[str]], logs: Path, port: int | None = None, **environment: str
) -> Iterator[str]:
    """The address of a server, while it runs, of a command line that is given a port."""
    port = port or free_port()
    with (logs / f"log-{port}").open("wb") as log:
        server = subprocess.Popen(
            command(port), stdout=log, stderr=log, env=os.environ | environment
        )
    try:
        wait_until_up(f"http://127.0.0.1:{port}/_stcore/health", server)
        yield f"http://localhost:{port}"
    finally:
        server.kill()  # it has nothing to save
        server.wait()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def wait_until_up(url: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(SECONDS_TO_START * 5):
        assert server.poll() is None, "the dashboard has ended"
        try:
            urllib.request.urlopen(url, timeout=5)
            return
        except OSError:  # refused, reset, or too busy to answer
            time.sleep(0.2)
    raise AssertionError("the dashboard does not answer")

"""The dashboard's server, as a process of its own."""

from __future__ import annotations

import socket
import subprocess
import time
import urllib.request

SECONDS_TO_START = 120


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

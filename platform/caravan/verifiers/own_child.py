"""The process of a verifier of one's own: imports its file, then answers one request a line.

Started by `caravan.verifiers.own` as a script, with nothing of caravan around it.
stdin: {"source": what the file holds, in base64}, then lines {"completion": ..., "ground_truth":
...}. stdout: a line {} once the function is
there, then {"result": score} for each request; {"error": ...} in place of either. What the
function prints goes to stderr.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import sys
import time
import traceback
import types
from collections.abc import Callable
from threading import Thread
from typing import Any


def main(path: str, name: str) -> None:
    Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)

    def attempt(act: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
        try:
            return {"result": act(*arguments)}
        except Exception as error:
            return {"error": describe(error, path)}

    def tell(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    source = base64.b64decode(json.loads(requests.readline())["source"])
    loaded = attempt(load, path, name, source)
    function = loaded.pop("result", None)
    tell(loaded)
    for line in requests:
        given = json.loads(line)
        tell(attempt(score, function, given["completion"], given["ground_truth"]))


def end_with(parent: int) -> None:
    """A parent that is killed in the middle of a call cannot end it."""
    while os.getppid() == parent:
        time.sleep(1)
    os.killpg(0, signal.SIGKILL)


def load(path: str, name: str, source: bytes) -> Any:
    module = types.ModuleType("own_verifier")
    module.__file__ = path
    sys.modules[module.__name__] = module
    exec(compile(source, path, "exec"), module.__dict__)
    return getattr(module, name)


def score(function: Callable[[str, Any], Any], completion: str, ground_truth: Any) -> float:
    said = function(completion, ground_truth)
    if not hasattr(said, "__float__") or not 0 <= float(said) <= 1:
        raise ValueError(f"returned {said!r:.200}, not True, False or a score from 0 to 1")
    return float(said)


def describe(error: Exception, path: str) -> str:
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
    where = f" (line {lines[-1]})" if lines else ""
    return f"{type(error).__name__}: {error}{where}"


if __name__ == "__main__":
    main(*sys.argv[1:])

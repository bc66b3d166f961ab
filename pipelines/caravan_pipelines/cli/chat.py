"""caravan chat: talk with a model on this machine."""

from __future__ import annotations

import sys
from contextlib import suppress

from transformers.utils.logging import disable_progress_bar

from caravan.errors import CaravanError
from caravan.inference.chat import Chat
from caravan.inference.engine import EngineError
from caravan.recipe import Sampling
from caravan_pipelines.cli.models import model_path

HELP = "/reset begins anew, /system TEXT too with another system message; Ctrl-D ends"


def chat(
    model: str, prompt: str, *, system: str, temperature: float, max_tokens: int, seed: int
) -> None:
    if not prompt and not sys.stdin.isatty():
        try:
            prompt = sys.stdin.buffer.read().decode().strip()
        except UnicodeDecodeError as error:
            raise CaravanError(
                f"standard input is not UTF-8: {error.reason}; convert it"
            ) from error
        if not prompt:
            raise CaravanError("nothing to reply to: give --prompt TEXT, or text on standard input")
    disable_progress_bar()
    sampling = Sampling(temperature=temperature, max_completion_length=max_tokens)
    opened = Chat.open(model_path(model), sampling, seed=seed, system=system)
    if prompt:
        opened.say(prompt, _write)
        print()
        return
    with suppress(ImportError):
        import readline  # noqa: F401  # lines can be edited
    print(HELP)
    with suppress(EOFError, KeyboardInterrupt):
        while True:
            _turn(opened, input("> ").strip())
    print()


def _turn(chat: Chat, line: str) -> None:
    command, _, text = line.partition(" ")
    if command == "/reset":
        chat.reset()
    elif command == "/system":
        chat.reset(text.strip())
    elif command.startswith("/"):
        print(HELP)
    elif line:
        try:
            whole = chat.say(line, _write)
        except EngineError as error:
            print(f"error: {error} (/reset)")
            return
        print("" if whole else " [cut off]")


def _write(text: str) -> None:
    print(text, end="", flush=True)

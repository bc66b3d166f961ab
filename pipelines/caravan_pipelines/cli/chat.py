"""caravan chat: talk with a model on this machine."""

from __future__ import annotations

import re
import sys
from contextlib import suppress

from transformers.utils.logging import disable_progress_bar

from caravan.errors import CaravanError
from caravan.inference.chat import Chat
from caravan.inference.engine import EngineError
from caravan.recipe import Sampling
from caravan_pipelines.cli.models import model_path

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters that a terminal takes for commands."""
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
        import readline  # lines can be edited

        readline.parse_and_bind("set enable-bracketed-paste on")  # pasted lines are one turn
    print(HELP)
    with suppress(EOFError):
        while True:
            try:
                _turn(opened, input("> ").strip())
            except KeyboardInterrupt:  # meant for a reply that has just ended, or for the line
                print(f"\n{HELP}")
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
    if sys.stdout.isatty():  # a reply is text, whatever it holds
        text = CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
    print(text, end="", flush=True)

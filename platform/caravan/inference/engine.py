"""One protocol over everything that completes prompts."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Protocol

from caravan.data.records import FinishReason, Message
from caravan.errors import CaravanError
from caravan.recipe import Sampling


class EngineError(CaravanError):
    """An engine could not answer. A failed request is never an empty reply."""


class PromptRefusedError(EngineError):
    """A model cannot be asked a prompt: its own chat template has no room for it, such as for the
    order of its roles, or its tokenizer none for an option."""

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(f"prompt {number}: {reason}")
        self.number = number
        self.reason = reason


@contextmanager
def naming(rows: Sequence[str]) -> Iterator[None]:
    """Where a prompt is refused, say which of `rows` it is."""
    try:
        yield
    except PromptRefusedError as error:
        raise EngineError(f"{rows[error.number]}: {error.reason}") from error


@dataclass(frozen=True)
class Generation:
    """One reply."""

    text: str
    finish_reason: FinishReason
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    """In nats, one for each token id, at the sampling temperature; empty where not known."""


class Engine(Protocol):
    def generate(
        self,
        prompts: Sequence[Sequence[Message]],
        sampling: Sampling,
        *,
        n: int = 1,
        seed: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[list[Generation]]:
        """`n` replies to each prompt, in the order of the prompts. Same seed, same replies.

        A prompt that leaves no room for a reply gets `TOO_LONG` for each of them.
        """
        ...


TOO_LONG = Generation("", "too_long")


def positions_of(config: object) -> int:
    """Tokens that fit the model of this configuration, prompt and reply together."""
    return int(getattr(config, "max_position_embeddings", None) or sys.maxsize)


def positions_in(directory: Path) -> int:
    """Those of the model in a directory, without loading it."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    return positions_of(SimpleNamespace(**config))


def leaves_room(prompt: Sequence[int], positions: int) -> bool:
    """Whether a reply, of a token at least, fits behind the tokens of `prompt`."""
    return len(prompt) < positions


def asked_in(engine: Engine) -> str | None:
    """SHA-256 of the chat template that an engine asks its model in; None where it does not know,
    as of an endpoint, which decides that for itself."""
    return getattr(engine, "template_hash", None)


def without_reply(names: Iterable[str], replies: Iterable[Sequence[Generation]]) -> list[str]:
    """The names of the prompts, one for each group of replies, that were too long for one."""
    return [name for name, group in zip(names, replies, strict=True) if TOO_LONG in group]


def reply_seed(seed: int, prompt: Sequence[Message], index: int) -> int:
    """Seed in [0, 2^63) of one reply: depends on the prompt's text, not on its place in a batch."""
    digest = hashlib.sha256(f"{seed}\x00{index}".encode())
    for message in prompt:
        digest.update(f"\x00{message.role}\x00{message.content}".encode())
    return int.from_bytes(digest.digest()[:8], "big") >> 1

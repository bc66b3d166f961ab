"""One protocol over everything that completes prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from caravan.data.records import FinishReason, Message
from caravan.errors import CaravanError
from caravan.recipe import Sampling


class EngineError(CaravanError):
    """An engine could not answer. A failed request is never an empty reply."""


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
        """`n` replies to each prompt, in the order of the prompts. Same seed, same replies."""
        ...


def reply_seed(seed: int, prompt: Sequence[Message], index: int) -> int:
    """Seed in [0, 2^63) of one reply: depends on the prompt's text, not on its place in a batch."""
    digest = hashlib.sha256(f"{seed}\x00{index}".encode())
    for message in prompt:
        digest.update(f"\x00{message.role}\x00{message.content}".encode())
    return int.from_bytes(digest.digest()[:8], "big") >> 1

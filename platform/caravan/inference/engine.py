"""One protocol over everything that completes prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from caravan.data.records import FinishReason, Message
from caravan.recipe import Sampling


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

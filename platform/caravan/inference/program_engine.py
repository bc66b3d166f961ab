"""A scripted responder of the pocket recipe."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Self

from caravan.data.records import Message
from caravan.inference.engine import EngineError, Generation, reply_seed
from caravan.recipe import Sampling

Program = Callable[[Sequence[Message], random.Random], str]


class ProgramEngine:
    """Replies with `program(messages, rng)`. It has no tokens: `Sampling` does not apply to it."""

    def __init__(self, program: Program) -> None:
        self.program = program

    @classmethod
    def named(cls, name: str) -> Self:
        """The program of this name in `caravan.pocket.teacher.PROGRAMS`."""
        from caravan.pocket.teacher import PROGRAMS

        if name not in PROGRAMS:
            raise EngineError(f"no program {name!r}; there are: {', '.join(sorted(PROGRAMS))}")
        return cls(PROGRAMS[name])

    def generate(
        self,
        prompts: Sequence[Sequence[Message]],
        sampling: Sampling,
        *,
        n: int = 1,
        seed: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[list[Generation]]:
        replies: list[list[Generation]] = []
        for prompt in prompts:
            rngs = [random.Random(reply_seed(seed, prompt, index)) for index in range(n)]
            replies.append([Generation(self.program(prompt, rng), "stop") for rng in rngs])
            if progress is not None:
                progress(len(replies) * n, len(prompts) * n)
        return replies

"""How likely given replies are to prompts, for tasks that compare options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from caravan.data.records import Message
from caravan.data.template import encode_reply
from caravan.inference.prompt_format import PromptFormat

Progress = Callable[[int, int], None]


class Question(NamedTuple):
    """Token ids of a prompt, and of each of its options."""

    prompt: list[int]
    options: list[list[int]]

    @property
    def longest(self) -> int:
        """Tokens of the prompt with its longest option."""
        return len(self.prompt) + max(map(len, self.options))


class LikelihoodEngine(Protocol):
    """An engine whose model tells probabilities; an endpoint's or a program does not."""

    @property
    def format(self) -> PromptFormat: ...

    @property
    def positions(self) -> int:
        """Tokens that fit the model."""
        ...

    def weigh(
        self, questions: Sequence[Question], progress: Progress | None = None
    ) -> list[list[float]]:
        """`log_likelihoods` of questions that fit."""
        ...


def log_likelihoods(
    engine: LikelihoodEngine,
    prompts: Sequence[Sequence[Message]],
    options: Sequence[Sequence[str]],
    *,
    progress: Progress | None = None,
) -> list[list[float]]:
    """Of each of a prompt's options, in nats, the log-probability that the reply begins so: the sum
    over its tokens, without an end token.

    A prompt that does not fit the model with each of its options gets an empty list.
    """
    questions = encode_questions(engine.format, prompts, options)
    # With room for one more token, which vLLM writes in any case.
    fits = [question.longest < engine.positions for question in questions]
    fitting = [question for question, fit in zip(questions, fits, strict=True) if fit]
    found = iter(engine.weigh(fitting, progress))
    return [next(found) if fit else [] for fit in fits]


def encode_questions(
    asked: PromptFormat,
    prompts: Sequence[Sequence[Message]],
    options: Sequence[Sequence[str]],
) -> list[Question]:
    replies = [[encode_reply(asked.tokenizer, option) for option in several] for several in options]
    return list(map(Question, asked.encode_all(prompts), replies))

"""How likely given replies are to prompts, for tasks that compare options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite
from typing import NamedTuple, Protocol

from caravan.data.records import Message
from caravan.data.template import encode_reply
from caravan.inference.engine import EngineError, PromptRefusedError
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

    Raises:
        PromptRefusedError: see `encode_questions`.
        EngineError: a log-probability is not finite.
    """
    questions = encode_questions(engine.format, prompts, options)
    # With room for one more token, which vLLM writes in any case.
    fits = [question.longest < engine.positions for question in questions]
    fitting = [question for question, fit in zip(questions, fits, strict=True) if fit]
    weighed = engine.weigh(fitting, progress)
    if not all(isfinite(value) for values in weighed for value in values):
        raise EngineError(
            "the model's log-probabilities are not finite: its weights are broken, or training "
            "diverged"
        )
    found = iter(weighed)
    return [next(found) if fit else [] for fit in fits]


def encode_questions(
    asked: PromptFormat,
    prompts: Sequence[Sequence[Message]],
    options: Sequence[Sequence[str]],
) -> list[Question]:
    """Prompts and options in tokens.

    Raises:
        PromptRefusedError: the template has no room for a prompt's roles, or the tokenizer no token
            for an option, which would be as likely as nothing else.
    """
    questions = []
    for number, (prompt, several) in enumerate(
        zip(asked.encode_all(prompts), options, strict=True)
    ):
        replies = [encode_reply(asked.tokenizer, option) for option in several]
        if [] in replies:
            raise PromptRefusedError(
                number,
                f"{asked.tokenizer.name_or_path} has no token for the option "
                f"{several[replies.index([])]!r}; leave it out, or write it in other characters",
            )
        questions.append(Question(prompt, replies))
    return questions

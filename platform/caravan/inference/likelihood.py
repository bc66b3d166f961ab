"""How likely given replies are to prompts, for tasks that compare options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import NamedTuple, Protocol

from caravan.data.records import Message
from caravan.data.template import encode_reply
from caravan.inference.prompt_format import PromptFormat

Progress = Callable[[int, int], None]


class LikelihoodEngine(Protocol):
    """An engine whose model tells probabilities; an endpoint's or a program does not."""

    def log_likelihoods(
        self,
        prompts: Sequence[Sequence[Message]],
        options: Sequence[Sequence[str]],
        *,
        progress: Progress | None = None,
    ) -> list[list[float]]:
        """Of each of a prompt's options, in nats, the log-probability that the reply begins so:
        the sum over its tokens, without an end token.

        A prompt that does not fit the model with each of its options gets an empty list.
        """
        ...


class Given(NamedTuple):
    """A prompt and a reply to it."""

    token_ids: list[int]
    reply: int
    """Tokens of the reply, which stand at the end."""


def weigh(
    asked: PromptFormat,
    prompts: Sequence[Sequence[Message]],
    options: Sequence[Sequence[str]],
    positions: int,
    of_rows: Callable[[Sequence[Given]], Sequence[float]],
) -> list[list[float]]:
    """The `log_likelihoods` of an engine whose model has `positions` and is asked in `asked`, and
    which finds those of rows by `of_rows`."""
    given = [
        rows if fit(rows, positions) else [] for rows in given_replies(asked, prompts, options)
    ]
    found = iter(of_rows([row for rows in given for row in rows]))
    return [list(islice(found, len(rows))) for rows in given]


def given_replies(
    asked: PromptFormat,
    prompts: Sequence[Sequence[Message]],
    options: Sequence[Sequence[str]],
) -> list[list[Given]]:
    """Every prompt with each of its options."""
    replies = [[encode_reply(asked.tokenizer, option) for option in several] for several in options]
    return [
        [Given(prompt + reply, len(reply)) for reply in several]
        for prompt, several in zip(asked.encode_all(prompts), replies, strict=True)
    ]


def fit(rows: Sequence[Given], positions: int) -> bool:
    """Whether each of them leaves room for one more token, which vLLM writes in any case."""
    return all(len(row.token_ids) < positions for row in rows)

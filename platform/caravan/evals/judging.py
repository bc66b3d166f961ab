"""Judges: ratings from 1 to 5 on four aspects, by a program or by a language model.

An aspect that does not apply is None; one whose rating could not be read is absent, so that a
broken reply never looks like a bad completion.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from caravan.data.records import Aspect, Message
from caravan.errors import RecipeError, some
from caravan.evals.judge_prompts import (
    UnreadableReplyError,
    judge_messages,
    parse_ratings,
    reminder,
)
from caravan.inference import Engine, without_reply
from caravan.recipe import JudgeEngine, LLMJudge, Sampling

MAX_REPLIES = 3
"""Asked so often before an unreadable rating is given up."""

Progress = Callable[[int, int], None]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class JudgeItem:
    """A prompt with the completions to rate side by side."""

    id: str
    messages: tuple[Message, ...]
    completions: tuple[str, ...]
    skill: str = ""
    verifier: str | None = None
    ground_truth: Any = None


@dataclass
class Judgement:
    """What the judge says of one completion."""

    ratings: dict[Aspect, int | None] = field(default_factory=dict)
    rationale: str = ""

    @property
    def mean_rating(self) -> float | None:
        """Mean over the aspects that apply; None where no rating could be read."""
        given = [rating for rating in self.ratings.values() if rating is not None]
        return sum(given) / len(given) if given else None


class Judge(Protocol):
    def judge(
        self, items: Sequence[JudgeItem], *, seed: int, progress: Progress | None = None
    ) -> list[list[Judgement]]:
        """A judgement for each completion of each item, in their order."""
        ...


def load_judge(
    config: JudgeEngine, engine: Callable[[], Engine] | None, aspects: Sequence[Aspect]
) -> Judge:
    """The judge that a recipe names; `engine` loads the language model of an LLM judge."""
    if not isinstance(config, LLMJudge):
        return ProgramJudge(tuple(aspects))
    if engine is None:
        raise RecipeError(f"the judge's engine {config.engine!r} is not described")
    return ModelJudge(engine(), config.sampling, tuple(aspects))


@dataclass(frozen=True)
class ProgramJudge:
    """The pocket recipe's judge: no model is asked."""

    aspects: tuple[Aspect, ...]

    def judge(
        self, items: Sequence[JudgeItem], *, seed: int, progress: Progress | None = None
    ) -> list[list[Judgement]]:
        judgements = []
        for done, item in enumerate(items, start=1):
            judgements.append([self._rate(item, text) for text in item.completions])
            if progress and (done % 100 == 0 or done == len(items)):
                progress(done, len(items))
        return judgements

    def _rate(self, item: JudgeItem, text: str) -> Judgement:
        from caravan.pocket.judge import rate

        ratings = rate(item.messages, text, item.skill or None, item.ground_truth, item.verifier)
        return Judgement({aspect: ratings[aspect] for aspect in self.aspects if aspect in ratings})


@dataclass
class _Request:
    """One aspect of one item, asked until the reply can be read."""

    item: int
    aspect: Aspect
    order: list[int]
    """Which completion stands at each number."""
    messages: tuple[Message, ...]


@dataclass(frozen=True)
class ModelJudge:
    """A language model, asked about one aspect at a time with all completions before it.

    The completions stand in an order shuffled by seed, prompt and aspect, so that no model of the
    pool always comes first.
    """

    engine: Engine
    sampling: Sampling
    aspects: tuple[Aspect, ...]

    def judge(
        self, items: Sequence[JudgeItem], *, seed: int, progress: Progress | None = None
    ) -> list[list[Judgement]]:
        judgements = [[Judgement() for _ in item.completions] for item in items]
        pending = [
            self._request(number, item, aspect, seed)
            for number, item in enumerate(items)
            for aspect in self.aspects
        ]
        total = len(pending)
        for attempt in range(MAX_REPLIES):
            replies = self.engine.generate(
                [request.messages for request in pending], self.sampling, seed=seed + attempt
            )
            names = [f"{items[request.item].id} ({request.aspect})" for request in pending]
            if too_long := without_reply(names, replies):
                logger.warning("too long for the judge, so not rated: %s", some(too_long))
            failed = []
            for request, (reply,) in zip(pending, replies, strict=True):
                if reply.finish_reason == "too_long":
                    continue
                try:
                    self._note(request, reply.text, judgements[request.item])
                except UnreadableReplyError as error:
                    said = Message(role="assistant", content=reply.text)
                    request.messages = (*request.messages, said, reminder(str(error)))
                    failed.append(request)
            pending = failed
            if progress:
                progress(total - len(pending), total)
            if not pending:
                break
        return judgements

    def _request(self, number: int, item: JudgeItem, aspect: Aspect, seed: int) -> _Request:
        order = list(range(len(item.completions)))
        random.Random(f"{seed}/{item.id}/{aspect}").shuffle(order)
        texts = [item.completions[i] for i in order]
        return _Request(number, aspect, order, judge_messages(item.messages, texts, aspect))

    def _note(self, request: _Request, reply: str, judgements: list[Judgement]) -> None:
        ratings = parse_ratings(reply, len(request.order), request.aspect)
        for position, rating in zip(request.order, ratings, strict=True):
            judgement = judgements[position]
            judgement.ratings[request.aspect] = rating.rating
            line = f"{request.aspect}: {rating.rationale}".strip()
            judgement.rationale = f"{judgement.rationale}\n{line}".strip()

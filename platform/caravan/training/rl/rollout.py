"""Rollouts: completions of the current policy, what verifiers and a reward model say of them, and
their rewards.

Each rank samples and verifies a part of the prompts, scores a part of the completions, and gets the
rollouts of all. What a prompt is drawn with does not depend on how many ranks there are.

Shapes: N completions, R tokens of the longest.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from operator import itemgetter
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from caravan.data.records import Conversation
from caravan.errors import DataError
from caravan.inference.sampler import TokenSequence
from caravan.inference.transformers_engine import decode_reply
from caravan.recipe import Sampling
from caravan.training.batching import TokenRow
from caravan.training.parallel.ranks import current
from caravan.training.rl.samplers import Sampler
from caravan.verifiers import OwnVerifier, Verifier, waits

logger = logging.getLogger(__name__)


class Outcome(StrEnum):
    VERIFIED = "verified"
    NOT_VERIFIED = "not_verified"
    FAILED = "failed"
    """The verifier raised or ran out of time: nothing is known about the completion."""
    UNCHECKED = "unchecked"
    """The prompt has no verifier."""


class Judgement(NamedTuple):
    """What a verifier says about one completion."""

    outcome: Outcome
    share: float
    """Of the verification reward: 1 or 0, and of a verifier of one's own its score."""


@dataclass(frozen=True)
class RLPrompt:
    """A prompt as tokens."""

    row: Conversation
    token_ids: tuple[int, ...]

    @property
    def id(self) -> str:
        return self.row.id

    @property
    def length(self) -> int:
        """In tokens."""
        return len(self.token_ids)


@dataclass(frozen=True)
class Rollout:
    """One completion of one prompt."""

    prompt: RLPrompt
    sequence: TokenSequence
    text: str
    outcome: Outcome
    reward: float | None
    """None where the verifier failed: such a completion takes no part in training."""
    score: float | None = None
    """Of the reward model; None where none is asked."""

    @property
    def token_row(self) -> TokenRow:
        return token_row(self.prompt, self.sequence)


def token_row(prompt: RLPrompt, reply: TokenSequence) -> TokenRow:
    """Prompt and completion; the loss falls on the latter."""
    mask = [False] * prompt.length + [True] * len(reply.token_ids)
    return TokenRow(prompt.id, prompt.token_ids + reply.token_ids, mask)


@dataclass(frozen=True)
class RolloutBatch:
    """The rollouts of one step; the completions of a prompt follow each other."""

    rollouts: tuple[Rollout, ...]
    num_generations: int

    @cached_property
    def token_rows(self) -> tuple[TokenRow, ...]:
        return tuple(r.token_row for r in self.rollouts)

    @cached_property
    def counts(self) -> Tensor:
        """[N] bool: the reward is known."""
        return torch.tensor([r.reward is not None for r in self.rollouts])

    @cached_property
    def rewards(self) -> Tensor:
        """[N], 0 where not known."""
        return torch.tensor([r.reward or 0.0 for r in self.rollouts])

    @property
    def by_group(self) -> tuple[Tensor, Tensor]:
        """[P, G] `rewards` and `counts` of each prompt's completions."""
        shape = (-1, self.num_generations)
        return self.rewards.view(shape), self.counts.view(shape)

    @cached_property
    def ended(self) -> Tensor:
        """[N] bool: with an end token."""
        return torch.tensor([r.sequence.finish_reason == "stop" for r in self.rollouts])

    @cached_property
    def lengths(self) -> Tensor:
        """[N] tokens of each completion."""
        return torch.tensor([len(r.sequence.token_ids) for r in self.rollouts])

    @cached_property
    def mask(self) -> Tensor:
        """[N, R] bool."""
        return torch.arange(int(self.lengths.max()))[None, :] < self.lengths[:, None]

    @cached_property
    def sampler_logprobs(self) -> Tensor:
        """[N, R] as the sampler reported them, 0 outside the mask."""
        flat = [value for r in self.rollouts for value in r.sequence.logprobs]
        return torch.zeros(self.mask.shape).masked_scatter(self.mask, torch.tensor(flat))


def collect(
    sampler: Sampler,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[RLPrompt],
    verifiers: Mapping[str, Verifier],
    *,
    num_generations: int,
    sampling: Sampling,
    verification_reward: float,
    missing_eos_reward: float | None,
    seed: int,
    workers: int = 1,
    score: Callable[[Sequence[TokenRow]], Sequence[float]] | None = None,
    reward_model_multiplier: float = 0.0,
) -> RolloutBatch:
    """Sample `num_generations` completions of each prompt, verify and reward them.

    Args:
        seed: what the step's tokens are drawn with; the same on every rank.
        workers: threads for verifiers that start processes.
        score: the reward model; None asks none.

    Raises:
        DataError: a row names no known verifier, or has a ground truth that its verifier refuses.
    """
    own = sampler.sample(
        [prompt.token_ids for prompt in prompts], n=num_generations, sampling=sampling, seed=seed
    )
    drawn = [(prompts[number], s) for number, group in own.items() for s in group]
    texts = [decode_reply(tokenizer, sequence.token_ids) for _, sequence in drawn]
    rows = [prompt.row for prompt, _ in drawn]
    asked = [verifiers[row.verifier] if row.verifier else None for row in rows]
    if workers > 1 and any(verifier and waits(verifier) for verifier in asked):
        with ThreadPoolExecutor(workers) as pool:
            judgements = list(pool.map(judge, asked, rows, texts))
    else:
        judgements = list(map(judge, asked, rows, texts))
    own_part = list(zip((sequence for _, sequence in drawn), texts, judgements, strict=True))
    found = current().collect(
        [
            (number, own_part[i * num_generations : (i + 1) * num_generations])
            for i, number in enumerate(own)
        ]
    )
    verified = [
        (prompts[number], *completion)
        for number, group in sorted(found, key=itemgetter(0))
        for completion in group
    ]
    scores: Sequence[float | None] = [None] * len(verified)
    if score is not None:
        scores = score([token_row(prompt, sequence) for prompt, sequence, *_ in verified])
    rollouts = tuple(
        Rollout(
            prompt,
            sequence,
            text,
            judgement.outcome,
            reward_of(
                judgement,
                ended=sequence.finish_reason == "stop",
                verification_reward=verification_reward,
                missing_eos_reward=missing_eos_reward,
                scored=reward_model_multiplier * (scored or 0.0),
            ),
            scored,
        )
        for (prompt, sequence, text, judgement), scored in zip(verified, scores, strict=True)
    )
    return RolloutBatch(rollouts, num_generations)


def judge(verifier: Verifier | None, row: Conversation, text: str) -> Judgement:
    """What the row's verifier, if it has one, says about a completion.

    Raises:
        DataError: the row is at fault; names it.
    """
    if verifier is None:
        return Judgement(Outcome.UNCHECKED, 0.0)
    try:
        verdict = verifier(text, row.ground_truth)
    except DataError as error:
        raise DataError(f"row {row.id!r}: {error}") from error
    except Exception:
        # Not the completion's fault, whatever it was: counted, never rewarded and never punished.
        logger.warning(
            "verifier %s failed on a completion of %s", row.verifier, row.id, exc_info=True
        )
        return Judgement(Outcome.FAILED, 0.0)
    outcome = Outcome.VERIFIED if verdict.correct else Outcome.NOT_VERIFIED
    own = isinstance(verifier, OwnVerifier)
    return Judgement(outcome, verdict.score if own else float(verdict.correct))


def reward_of(
    judgement: Judgement,
    *,
    ended: bool,
    verification_reward: float,
    missing_eos_reward: float | None,
    scored: float = 0.0,
) -> float | None:
    """The reward of one completion; None where it is not known.

    A missing end token replaces the reward: a right answer that does not end is punished too
    (Tülu 3's code; the paper's table 21).

    Args:
        scored: what the reward model adds.
    """
    if judgement.outcome is Outcome.FAILED:
        return None
    if not ended and missing_eos_reward is not None:
        return missing_eos_reward
    return verification_reward * judgement.share + scored

"""What rollouts are sampled with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from caravan.inference.sampler import TokenSequence, draw, generate_tokens
from caravan.recipe import Sampling
from caravan.training.optim import Updater
from caravan.training.parallel.ranks import current


class Sampler(Protocol):
    @property
    def importance_ratio_cap(self) -> float | None:
        """Where its probabilities are not the trainer's: the greatest weight of a token that it
        sampled; else None."""
        ...

    def load(self, policy: Updater) -> None:
        """Take over the policy's weights as they are; every rank does."""
        ...

    def sample(
        self, prompts: Sequence[Sequence[int]], *, n: int, sampling: Sampling, seed: int
    ) -> dict[int, list[TokenSequence]]:
        """`n` continuations of each prompt that is this rank's to sample, by its number.

        Args:
            prompts: those of all ranks.
            seed: the same on every rank.
        """
        ...

    def rest(self) -> None:
        """Leave the device to the updates; it is not asked again before the next `load`."""
        ...

    def close(self) -> None:
        """Give back what it holds; it cannot be used again."""
        ...


@dataclass(frozen=True)
class ModelSampler:
    """Samples in this process. What a prompt's tokens are drawn with does not depend on how many
    ranks there are."""

    importance_ratio_cap: ClassVar[None] = None

    model: PreTrainedModel
    """The policy itself, or a whole copy that gets its weights before each step."""
    tokenizer: PreTrainedTokenizerBase

    def load(self, policy: Updater) -> None:
        if self.model is not policy.model:
            policy.write_to(self.model)

    def sample(
        self, prompts: Sequence[Sequence[int]], *, n: int, sampling: Sampling, seed: int
    ) -> dict[int, list[TokenSequence]]:
        ranks, device = current(), self.model.device
        own = range(ranks.rank, len(prompts), ranks.count)
        generator = torch.Generator(device).manual_seed(seed)
        uniforms = draw(sampling.max_completion_length, len(prompts), n, generator, device)
        groups = generate_tokens(
            self.model,
            [prompts[number] for number in own],
            n=n,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_new_tokens=sampling.max_completion_length,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
            uniforms=uniforms[:, list(own)],
        )
        return dict(zip(own, groups, strict=True))

    def rest(self) -> None:
        """It keeps nothing but weights."""

    def close(self) -> None:
        """It holds nothing that the policy does not."""

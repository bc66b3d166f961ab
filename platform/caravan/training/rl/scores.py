"""What a reward model says about completions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from caravan.errors import StageError
from caravan.training.batching import TokenRow
from caravan.training.frozen import Frozen
from caravan.training.lanes import Lanes
from caravan.training.parallel.ranks import current
from caravan.training.precision import autocast
from caravan.training.rewards import end_token_rewards
from caravan.training.rl.forward import Pass, passes


class Scorer:
    """A reward model that is only read; each rank scores a part of the completions."""

    def __init__(
        self,
        reward: Frozen,
        *,
        tokens_per_pass: int,
        bf16: bool,
        pad_token_id: int,
        lanes: int,
    ) -> None:
        self._reward = reward
        self._lanes = Lanes(reward.model, lanes)
        self._tokens_per_pass = tokens_per_pass
        self._bf16 = bf16
        self._pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[TokenRow]) -> list[float]:
        """The score of each row, prompt and completion, read at its last token; every rank asks
        for the same rows.

        Raises:
            StageError: a score is not finite; names the row.
        """
        parts = passes(
            rows,
            range(len(rows)),
            tokens_per_pass=self._tokens_per_pass,
            pad_token_id=self._pad_token_id,
            lanes=len(self._lanes.models),
        )
        scores = torch.zeros(len(rows))
        for part, values in zip(parts, self._lanes.map(self._of_pass, parts), strict=True):
            if part.counts:
                scores[part.indices] = values
        current().add_up(scores)
        found = scores.tolist()
        for row, score in zip(rows, found, strict=True):
            if not math.isfinite(score):
                raise StageError(
                    f"the reward model's score of a completion of {row.id} is {score}; look at the "
                    "reward model, whose own stage logs its rewards"
                )
        return found

    def _of_pass(self, view: PreTrainedModel, part: Pass) -> Tensor:
        device = self._reward.device
        batch = part.batch.to(device)

        def score(model: PreTrainedModel) -> Tensor:
            with autocast(device.type, self._bf16):
                return end_token_rewards(model, batch.input_ids, batch.lengths, batch.layout).cpu()

        return cast(Tensor, self._reward.forward(score, view))

"""What a reward model says about completions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from caravan.errors import StageError
from caravan.training.batching import TokenRow, collate, split_passes
from caravan.training.lanes import Lanes
from caravan.training.precision import autocast
from caravan.training.rewards import end_token_rewards
from caravan.training.rl.forward import Pass


class Scorer:
    """A reward model that is only read, whole on every rank."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        tokens_per_pass: int,
        bf16: bool,
        pad_token_id: int,
        lanes: int,
    ) -> None:
        self._lanes = Lanes(model, lanes)
        self._tokens_per_pass = tokens_per_pass
        self._bf16 = bf16
        self._pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[TokenRow]) -> list[float]:
        """The score of each row, prompt and completion, read at its last token.

        Raises:
            StageError: a score is not finite; names the row.
        """
        lengths, lanes = [row.length for row in rows], len(self._lanes.models)
        passes = [
            Pass(torch.tensor(cut), collate([rows[i] for i in cut], self._pad_token_id))
            for cut in split_passes(lengths, self._tokens_per_pass, lanes=lanes)
        ]
        scores = torch.empty(len(rows))
        for part, values in zip(passes, self._lanes.map(self._of_pass, passes), strict=True):
            scores[part.indices] = values
        found = scores.tolist()
        for row, score in zip(rows, found, strict=True):
            if not math.isfinite(score):
                raise StageError(
                    f"the reward model's score of a completion of {row.id} is {score}; look at the "
                    "reward model, whose own stage logs its rewards"
                )
        return found

    @torch.no_grad()
    def _of_pass(self, model: PreTrainedModel, part: Pass) -> Tensor:
        batch = part.batch.to(model.device)
        with autocast(model.device.type, self._bf16):
            return end_token_rewards(model, batch.input_ids, batch.lengths, batch.layout).cpu()

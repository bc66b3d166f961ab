"""How far the policy has moved from its reference: the reference point of KTO.

KL(policy || reference) is estimated as the paper does (Ethayarajh et al. 2024, arXiv:2402.01306,
section 4.1): by the log-ratios of completions that do not belong to their prompts. Each prompt is
given a completion from the other half of the dataset, in turn a chosen and a rejected one, as both
are what is trained on. The estimate is the mean over the rows of a whole optimiser step and over
all ranks, so neither the cut into passes nor the number of ranks changes it; TRL takes the rows of
one pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, distributed
from transformers import PreTrainedModel

from caravan.errors import DataError
from caravan.recipe import DPOConfig
from caravan.training.batching import TokenRow
from caravan.training.parallel.ranks import current
from caravan.training.scoring import row_logprobs
from caravan.training.tokenize import PairRow


class Divergence:
    """Estimates the divergence on the rows of a step, under the policy as it then is."""

    def __init__(
        self,
        model: PreTrainedModel,
        rows: Sequence[PairRow],
        config: DPOConfig,
        *,
        pad_token_id: int,
    ) -> None:
        """`model` is still the reference policy. Every process of a job makes one."""
        self._model, self._config, self._pad = model, config, pad_token_id
        self._rows = mismatched(rows, config.max_length)
        ranks = current()
        share = range(ranks.rank, len(rows), ranks.count)
        self._reference = torch.zeros(len(rows))
        self._reference[list(share)] = self._logprobs(share)
        if ranks.count > 1:
            distributed.all_reduce(self._reference)

    def __call__(self, taken: Sequence[int]) -> Tensor:
        """[] mean log-ratio, not below 0, over this process's rows `taken` and those of the others.

        To be called once in each optimiser step by every process.
        """
        ratios = self._logprobs(taken) - self._reference[list(taken)]
        sums = current().sums({"ratios": float(ratios.double().sum()), "rows": len(taken)})
        return torch.tensor(max(0.0, sums["ratios"] / sums["rows"]))

    def _logprobs(self, taken: Sequence[int]) -> Tensor:
        return row_logprobs(
            self._model,
            [self._rows[i] for i in taken],
            tokens_per_pass=self._config.pass_tokens,
            bf16=self._config.bf16,
            pad_token_id=self._pad,
        )


def mismatched(rows: Sequence[PairRow], max_length: int) -> list[TokenRow]:
    """Each row's prompt with a completion from the other half of `rows`, cut at `max_length`.

    Raises:
        DataError: there is only one row.
    """
    if len(rows) < 2:
        raise DataError("loss_type kto needs at least two pairs, to estimate a divergence")
    mixed = []
    for i, row in enumerate(rows):
        other = rows[(i + len(rows) // 2) % len(rows)]
        prompt = _part(row.chosen, supervised=False)
        completion = _part(other.chosen if i % 2 == 0 else other.rejected, supervised=True)
        mask = [False] * len(prompt) + [True] * len(completion)
        ids = [*prompt, *completion]
        mixed.append(TokenRow(f"{row.id}:mismatched", ids[:max_length], mask[:max_length]))
    return mixed


def _part(row: TokenRow, *, supervised: bool) -> list[int]:
    pairs = zip(row.input_ids, row.loss_mask, strict=True)
    return [token for token, mask in pairs if mask == supervised]

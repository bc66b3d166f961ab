"""What a training stage gives out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from caravan.recipe import TrainingConfig
from caravan.training.adapters import plain
from caravan.training.models import save_model


def save_trained(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: TrainingConfig,
    base: Path,
    directory: Path,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write what was trained, adapters merged.

    Args:
        base: what was trained from.
        weights: take the place of those that are trained, where they are spread over ranks.
    """
    merged = plain(model, config, base, weights)
    save_model(merged, tokenizer, directory, weights if merged is model else None)

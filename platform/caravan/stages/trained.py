"""What a training stage gives out."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from caravan.recipe import TrainingConfig
from caravan.stages.context import StageContext
from caravan.training.adapters import plain
from caravan.training.models import save_model
from caravan.training.parallel.ranks import current


def save_trained(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: TrainingConfig,
    base: Path,
    context: StageContext,
) -> None:
    """Write the output `model`, adapters merged; only the leading rank does.

    Args:
        base: what was trained from.
    """
    if current().leads:
        save_model(plain(model, config, base), tokenizer, context.output("model", "model"))

"""Whether the first rows and pairs can be rendered, masked and trained on."""

from __future__ import annotations

from caravan.data.records import Conversation, Pair
from caravan.errors import RecipeError
from caravan.recipe import RewardModelConfig, SFTConfig, TrainingConfig
from caravan_pipelines.dry_run.seen import Seen


def masks(sft: SFTConfig, seen: Seen) -> str:
    from caravan.training.tokenize import tokenize_conversations

    answered = seen.answered
    if not answered:
        seen.needs("source")
        raise RecipeError(
            "no source has a row with a reply to train on; docs/data-formats.md says which columns "
            "are read"
        )
    max_length = sft.max_length
    data = tokenize_conversations(answered, seen.tokenizer, max_length)
    said = [f"{len(answered)} rows rendered"]
    if data.truncated:
        said.append(f"{data.truncated} will be cut at {max_length} tokens")
    if data.dropped:
        said.append(
            f"{data.dropped} will be dropped: no reply of theirs begins within {max_length} tokens"
        )
    return "; ".join(said)


def pair_masks(stage: TrainingConfig, seen: Seen) -> str:
    from caravan.training.tokenize import tokenize_pairs

    pairs = seen.pairs
    if not pairs:
        seen.needs("pairs")
    whole = isinstance(stage, RewardModelConfig)
    data = tokenize_pairs(pairs, seen.tokenizer, stage.max_length, whole=whole)
    said = [f"{len(pairs)} pairs rendered"]
    if data.truncated:
        said.append(f"{data.truncated} will be cut at {stage.max_length} tokens")
    if data.dropped:
        what = "do not end" if whole else "do not both begin"
        said.append(
            f"{data.dropped} will be dropped: their replies {what} within {stage.max_length} tokens"
        )
    return "; ".join(said)


def two_steps_of(
    kind: str, config: object, rows: list[Conversation] | list[Pair] | None = None
) -> str:
    from caravan.training.dry_run import two_steps

    steps = two_steps(kind, config, rows=rows or None)  # type: ignore[arg-type]
    losses = ", ".join(f"{step.values['loss']:.3f}" for step in steps)
    what = "rows and settings train" if rows else "the settings train"
    return f"{what} a small random model, which says nothing of yours: losses {losses}"

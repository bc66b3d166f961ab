"""Two optimiser steps of a shrunken model: what a training stage would do, within a second."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Literal, cast

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from caravan.data.records import Conversation, Message, Pair
from caravan.recipe import (
    DPOConfig,
    PolicyConfig,
    PretrainedBase,
    RewardModelConfig,
    SFTConfig,
    TrainingConfig,
)
from caravan.training.bpe import train_tokenizer
from caravan.training.dpo import dpo_job
from caravan.training.frozen import Frozen
from caravan.training.loop import StepMetrics
from caravan.training.models import prepare_torch, reward_model_from
from caravan.training.pretrain import as_sft, new_llama, pack_windows
from caravan.training.reference import NO_REFERENCE, reference_logprobs
from caravan.training.reward_model import reward_model_job
from caravan.training.sft import sft_job
from caravan.training.tokenize import tokenize_conversations, tokenize_pairs

Kind = Literal["base", "sft", "dpo", "reward_model"]

STEPS = 2
ROWS = 8
MAX_LENGTH = 1024
CHARACTERS = 100
"""Of each text of the stage's own rows: a small tokenizer makes many tokens of a long one."""
TEXT = "the carts of the caravan roll over the hill and 12 of them carry salt to the river"


def two_steps(
    kind: Kind,
    config: TrainingConfig | PretrainedBase,
    rows: Sequence[Conversation] | Sequence[Pair] | None = None,
) -> list[StepMetrics]:
    """Train a random two-layer Llama for two optimiser steps with the stage's own code.

    Args:
        kind: the stage.
        config: the stage's, but for rows per step and length: rows are short here.
        rows: some of the stage's rows, of which the beginnings are taken; made up where they are
            None.

    Raises:
        CaravanError: what the stage itself would raise.
    """
    prepare_torch(cpus=1, seed=0)
    return list(islice(_steps(kind, config, _tokenizer(), rows), STEPS))


def _steps(
    kind: Kind,
    config: TrainingConfig | PretrainedBase,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Conversation] | Sequence[Pair] | None,
) -> Iterator[StepMetrics]:
    pad, bf16 = tokenizer.pad_token_id, config.bf16
    if isinstance(config, PretrainedBase):
        settings = _shrink(as_sft(config), sequences_per_step=2)
        assert isinstance(settings, SFTConfig)
        windows = pack_windows(_texts(), tokenizer, 32)
        model = _model(tokenizer, settings.max_length)
        return sft_job(model, windows, settings, pad_token_id=pad, seed=0).steps(bf16=bf16)
    config = _shrink(config)
    model = _model(tokenizer, config.max_length)
    if kind == "sft":
        given = map(_cut_row, cast(Sequence[Conversation], rows or ()))
        conversations = list(given) or _conversations()
        data = tokenize_conversations(conversations, tokenizer, config.max_length)
        sft = cast(SFTConfig, config)
        return sft_job(model, data.rows, sft, pad_token_id=pad, seed=0).steps(bf16=bf16)
    pairs = list(map(_cut_pair, cast(Sequence[Pair], rows or ()))) or _pairs()
    pair_rows = tokenize_pairs(
        pairs, tokenizer, config.max_length, whole=kind == "reward_model"
    ).rows
    if kind == "dpo":
        dpo = cast(DPOConfig, config)
        reference = NO_REFERENCE
        if dpo.loss.needs_reference:
            reference = reference_logprobs(
                Frozen(copy.deepcopy(model)),
                pair_rows,
                tokens_per_pass=dpo.pass_tokens,
                bf16=bf16,
                pad_token_id=pad,
            )
        return dpo_job(model, pair_rows, reference, dpo, pad_token_id=pad, seed=0).steps(bf16=bf16)
    reward = cast(RewardModelConfig, config)
    reward_model = reward_model_from(model, pad)
    return reward_model_job(reward_model, pair_rows, reward, pad_token_id=pad, seed=0).steps(
        bf16=bf16
    )


def _shrink(config: TrainingConfig, **changes: object) -> TrainingConfig:
    rows = "sequences_per_step" if isinstance(config, SFTConfig) else "pairs_per_step"
    cut: dict[str, object] = {rows: min(ROWS, getattr(config, rows)), "max_steps": STEPS}
    if isinstance(config, PolicyConfig):
        cut["select"] = None  # two steps have no policy before the last
    if config.tokens_per_pass == "auto":
        cut["tokens_per_pass"] = MAX_LENGTH
    return config.derive(max_length=MAX_LENGTH, **{**cut, **changes})


def _cut(messages: Iterable[Message]) -> tuple[Message, ...]:
    return tuple(m.model_copy(update={"content": m.content[:CHARACTERS]}) for m in messages)


def _cut_row(row: Conversation) -> Conversation:
    return row.model_copy(update={"messages": _cut(row.messages)})


def _cut_pair(pair: Pair) -> Pair:
    texts = {"chosen": pair.chosen[:CHARACTERS], "rejected": pair.rejected[:CHARACTERS]}
    return pair.model_copy(update={"prompt": _cut(pair.prompt[-1:]), **texts})


def _model(tokenizer: PreTrainedTokenizerBase, positions: int) -> PreTrainedModel:
    shape = PretrainedBase(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=positions,
    )
    return new_llama(shape, tokenizer)


def _tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(_texts(), vocab_size=300, model_max_length=MAX_LENGTH)


def _texts() -> list[str]:
    words = TEXT.split()
    return [" ".join(words[i:] + words[:i]) for i in range(len(words))]


def _conversations() -> list[Conversation]:
    return [
        Conversation(
            id=f"dry-run/{i}",
            messages=(
                Message(role="user", content=f"Begin with {text.split()[0]}."),
                Message(role="assistant", content=text),
            ),
            source="dry-run",
            skill="dry-run",
            license="Apache-2.0",
        )
        for i, text in enumerate(_texts())
    ]


def _pairs() -> list[Pair]:
    return [
        Pair(
            id=row.id,
            prompt=row.prompt,
            chosen=row.messages[-1].content,
            rejected=row.messages[-1].content[::-1],
            chosen_model="dry-run",
            rejected_model="dry-run",
            chosen_rating=5.0,
            rejected_rating=1.0,
            source=row.source,
            skill=row.skill,
        )
        for row in _conversations()
    ]

"""Pretraining of a small Llama: next-token prediction on packed windows of documents."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from caravan.errors import DataError
from caravan.recipe import PretrainedBase, SFTConfig
from caravan.training.batching import TokenRow

BETAS = (0.9, 0.95)
"""AdamW's of GPT-3 (arXiv:2005.14165, appendix B): short runs need a second moment that follows."""


def new_llama(config: PretrainedBase, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A randomly initialised Llama in float32, drawn with torch's default generator."""
    if config.hidden_size % config.num_attention_heads:
        raise DataError(
            f"hidden_size={config.hidden_size} is not a multiple of "
            f"num_attention_heads={config.num_attention_heads}"
        )
    architecture = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_attention_heads,
        max_position_embeddings=config.max_position_embeddings,
        tie_word_embeddings=True,
        initializer_range=config.initializer_range,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        use_cache=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype=torch.float32,
    )
    return LlamaForCausalLM(architecture).train()


def pack_windows(
    documents: Sequence[str], tokenizer: PreTrainedTokenizerBase, window: int
) -> list[TokenRow]:
    """The documents, each with an end token, joined and cut into windows of `window` tokens.

    A window sees the end of the document before; the rest that fills no window is left out.

    Raises:
        DataError: there is not even one window of text.
    """
    ids: list[int] = []
    for encoding in tokenizer.backend_tokenizer.encode_batch(list(documents)):
        ids += encoding.ids
        ids.append(tokenizer.eos_token_id)
    stream = np.array(ids, dtype=np.int64)
    count = len(stream) // window
    if count == 0:
        raise DataError(f"the corpus has {len(stream)} tokens, fewer than one window of {window}")
    everything = [True] * window
    return [
        TokenRow(f"window/{i}", stream[i * window : (i + 1) * window].tolist(), everything)
        for i in range(count)
    ]


def as_sft(config: PretrainedBase) -> SFTConfig:
    """Pretraining is SFT on windows with everything supervised."""
    window = config.max_position_embeddings
    return SFTConfig(
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_ratio=config.warmup_ratio,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        max_steps=config.max_steps,
        max_length=window,
        sequences_per_step=max(1, config.tokens_per_step // window),
        tokens_per_pass=config.tokens_per_step,
        bf16=config.bf16,
        resources=config.resources,
    )

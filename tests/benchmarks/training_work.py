"""The work that Caravan and TRL are both given: a model, rows, their order and their batch.

Words are tokens: a text of n words is a row of n tokens and an end token, so both sides train on
the very same ids although one of them is given text.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from caravan.recipe import PretrainedBase
from caravan.training.batching import TokenRow
from caravan.training.pretrain import new_llama
from caravan.training.tokenize import PairRow

PAD, EOS = 0, 1
SPECIAL = 2


@dataclass(frozen=True)
class Work:
    hidden: int
    layers: int
    intermediate: int
    vocabulary: int
    steps: int
    batch: int
    """Rows, or pairs, per optimiser step."""
    mean_tokens: int
    """Of a row; of a pair, of its prompt and one completion."""
    max_tokens: int
    spread: float
    """Standard deviation of the logarithm of the lengths."""
    prompt_share: float
    """Of a row's tokens."""
    tokens_per_pass: int = 16_384
    window: int = 1024
    """Longest row, and length of a packed one."""
    key_heads: int | None = None
    """None: as many as query heads, of 64 dimensions each."""
    head_size: int = 64
    gradient_checkpointing: bool = False
    trl_accumulation: int = 1
    """Passes in which TRL computes a step's pairs, so that one fits a GPU."""


WORK = {
    # The model and the lengths of pipelines/recipes/pocket.yaml.
    "pocket": Work(256, 2, 640, 1536, 30, 16, 75, 160, 0.4, 0.4, 4096),
    # Six layers and rows of very unequal length: what small chat data looks like.
    "5M": Work(256, 6, 704, 4096, 16, 8, 184, 741, 0.65, 0.4, 4096),
    # Matrices large enough that products, not Python, take the time.
    "22M": Work(512, 6, 1408, 8192, 8, 8, 184, 741, 0.65, 0.4, 4096),
    # For a GPU: the shapes of Llama 3.2 1B and 3B, with random weights.
    "1B": Work(
        2048, 16, 8192, 128_256, 6, 64, 800, 4096, 0.8, 0.4, 28_672, 4096, 8, 64,
        trl_accumulation=16,
    ),
    "3B": Work(
        3072, 28, 8192, 128_256, 6, 32, 800, 4096, 0.8, 0.4, 16_384, 4096, 8, 128,
        gradient_checkpointing=True, trl_accumulation=8,
    ),
    # The same path within seconds on a CPU.
    "tiny": Work(
        64, 2, 128, 512, 4, 4, 40, 96, 0.5, 0.4, 256, 128, 1, 32, gradient_checkpointing=True,
        trl_accumulation=2,
    ),
}  # fmt: skip


def lengths(work: Work, seed: int = 0) -> np.ndarray:
    """[rows] int64."""
    generator = np.random.default_rng(seed)
    centre = np.log(work.mean_tokens) - work.spread**2 / 2
    drawn = generator.lognormal(centre, work.spread, work.steps * work.batch)
    return drawn.round().astype(np.int64).clip(12, work.max_tokens)


def token_rows(work: Work) -> list[TokenRow]:
    """Rows in the order in which they are trained on."""
    generator = np.random.default_rng(1)
    rows = []
    for i, total in enumerate(lengths(work)):
        prompt = max(1, int(total * work.prompt_share))
        ids = [*generator.integers(SPECIAL, work.vocabulary, total - 1).tolist(), EOS]
        rows.append(TokenRow(str(i), ids, [False] * prompt + [True] * (total - prompt)))
    return rows


def pair_rows(work: Work) -> list[PairRow]:
    """Pairs in the order in which they are trained on."""
    generator = np.random.default_rng(2)
    rows = []
    for i, total in enumerate(lengths(work)):
        prompt_tokens = max(2, int(total * work.prompt_share))
        prompt = generator.integers(SPECIAL, work.vocabulary, prompt_tokens).tolist()
        sides = []
        for side in ("chosen", "rejected"):
            words = int((total - prompt_tokens) * generator.uniform(0.7, 1.3))
            words = min(max(words, 2), work.max_tokens - prompt_tokens)
            ids = [*generator.integers(SPECIAL, work.vocabulary, words - 1).tolist(), EOS]
            mask = [False] * prompt_tokens + [True] * len(ids)
            sides.append(TokenRow(f"{i}:{side}", prompt + ids, mask))
        rows.append(PairRow(str(i), *sides))
    return rows


def tokenizer(work: Work) -> PreTrainedTokenizerBase:
    """A word for each token."""
    words = {"<pad>": PAD, "<eos>": EOS}
    words |= {f"w{i}": i for i in range(SPECIAL, work.vocabulary)}
    backend = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>")


def words(ids: list[int]) -> str:
    """The text of `ids`, an end token left out: TRL adds it."""
    return " ".join(f"w{i}" for i in ids if i != EOS)


def model(work: Work) -> PreTrainedModel:
    """The same weights in every process; on the GPU where there is one."""
    torch.manual_seed(0)
    if work.key_heads is not None:
        shape = LlamaConfig(
            vocab_size=work.vocabulary,
            hidden_size=work.hidden,
            intermediate_size=work.intermediate,
            num_hidden_layers=work.layers,
            num_attention_heads=work.hidden // work.head_size,
            num_key_value_heads=work.key_heads,
            max_position_embeddings=work.window,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
            use_cache=False,
            bos_token_id=None,
            eos_token_id=EOS,
            pad_token_id=PAD,
        )
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with device:
            return LlamaForCausalLM._from_config(shape, dtype=torch.float32).train()
    pretrained = PretrainedBase(
        vocab_size=work.vocabulary,
        hidden_size=work.hidden,
        intermediate_size=work.intermediate,
        num_hidden_layers=work.layers,
        num_attention_heads=work.hidden // 64,
        max_position_embeddings=work.window,
        initializer_range=0.05,
    )
    return new_llama(pretrained, tokenizer(work))

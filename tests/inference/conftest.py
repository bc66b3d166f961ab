"""A tiny Llama and a tokenizer of single characters, real ones."""

import string

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from characters import character_tokenizer

SPECIAL = ["<pad>", "<|endoftext|>", "<unk>"]


@pytest.fixture
def tokenizer():
    return PreTrainedTokenizerFast(
        tokenizer_object=character_tokenizer(SPECIAL),
        pad_token="<pad>",
        eos_token="<|endoftext|>",
        unk_token="<unk>",
    )


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + len(string.printable),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.5,  # far from uniform, so that mistakes show
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()

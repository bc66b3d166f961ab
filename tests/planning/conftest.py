from pathlib import Path

import pytest

from caravan.recipe import PretrainedBase
from caravan.training.bpe import train_tokenizer
from caravan.training.models import Policy, prepare_torch
from caravan.training.pretrain import new_llama

TEXTS = [f"The camel carries {i} bags of salt to the town of Orsa." for i in range(40)]
RECIPES = Path(__file__).resolve().parents[2] / "pipelines" / "recipes"


@pytest.fixture(scope="session")
def tiny_policy() -> Policy:
    """A Llama of 40,000 parameters with a tokenizer."""
    prepare_torch(cpus=1, seed=3)
    tokenizer = train_tokenizer(TEXTS, vocab_size=320, model_max_length=64)
    shape = PretrainedBase(
        vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    return Policy(new_llama(shape, tokenizer), tokenizer)


@pytest.fixture
def recipes() -> Path:
    return RECIPES

"""A tiny Llama with a real tokenizer, and a stage context on a temporary directory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from caravan.training.bpe import train_tokenizer
from caravan.training.models import Policy, prepare_torch, save_model
from caravan.training.pretrain import new_llama
from tiny import SHAPE, TEXTS, Context, write_inputs


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of the training stages: `model`, `dataset` and `pairs`."""
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(tmp_path / "stage")


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(TEXTS, vocab_size=320, model_max_length=64)


@pytest.fixture
def policy(tokenizer: PreTrainedTokenizerBase) -> Policy:
    prepare_torch(cpus=1, seed=3)
    return Policy(new_llama(SHAPE, tokenizer), tokenizer)


@pytest.fixture
def model_dir(policy: Policy, tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    save_model(policy.model, policy.tokenizer, directory)
    return directory


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(2, 320, (3, 16), generator=torch.Generator().manual_seed(0))

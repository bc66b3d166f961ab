"""A tiny Llama with a real tokenizer, and a stage context on a temporary directory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from caravan.recipe import PretrainedBase
from caravan.training.bpe import train_tokenizer
from caravan.training.models import Policy, prepare_torch, save_model
from caravan.training.pretrain import new_llama

TEXTS = [f"The camel carries {i} bags of salt to the town of Orsa." for i in range(40)]
SHAPE = PretrainedBase(
    vocab_size=320,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=64,
)


@dataclass
class Context:
    """`StageContext` whose logs are kept; `stop_at` stops the stage as a killed process would."""

    directory: Path
    seed: int = 17
    stop_at: int | None = None
    logged: dict[int, dict[str, float]] = field(default_factory=dict)

    @property
    def workdir(self) -> Path:
        path = self.directory / "work"
        path.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def recipe_dir(self) -> Path:
        return self.directory

    def output(self, name: str, kind: str) -> Path:
        path = self.directory / "out" / name
        path.mkdir(parents=True)
        return path

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.logged[step] = dict(metrics)

    def progress(self, done: int, total: int) -> None:
        if done == self.stop_at:
            raise KeyboardInterrupt


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

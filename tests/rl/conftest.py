"""A policy of a few thousand weights on disk, and a task that it can learn in seconds."""

import string
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from caravan.data.io import write_rows
from caravan.data.records import Conversation
from caravan.training.models import new_reward_model, save_model
from characters import character_tokenizer

SPECIAL = ["<pad>", "<|endoftext|>", "<unk>"]
CHARACTERS = string.ascii_lowercase + string.digits + " \n<|>.?"


@dataclass
class Context:
    """A stage's context on a plain directory; keeps what is logged."""

    root: Path
    seed: int = 5
    logged: dict[int, dict[str, float]] = field(default_factory=dict)
    told: list[tuple[int, int]] = field(default_factory=list)
    stop_after: int | None = None

    @property
    def recipe_dir(self):
        return self.root

    @property
    def workdir(self):
        (self.root / "work").mkdir(parents=True, exist_ok=True)
        return self.root / "work"

    def output(self, name, kind):
        path = self.root / "out" / name
        path.mkdir(parents=True)
        return path

    def log(self, step, metrics):
        self.logged[step] = dict(metrics)

    def progress(self, done, total):
        self.told.append((done, total))
        if done == self.stop_after:
            raise KeyboardInterrupt


@pytest.fixture
def context(tmp_path):
    return lambda name, **changes: Context(tmp_path / name, **changes)


@pytest.fixture(scope="session")
def tokenizer():
    return PreTrainedTokenizerFast(
        tokenizer_object=character_tokenizer(SPECIAL, CHARACTERS),
        pad_token="<pad>",
        eos_token="<|endoftext|>",
        unk_token="<unk>",
    )


@pytest.fixture(scope="session")
def policy_dir(tokenizer, tmp_path_factory):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(SPECIAL) + len(CHARACTERS), hidden_size=32, intermediate_size=64,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=128, attention_dropout=0.1, tie_word_embeddings=True,
    )  # fmt: skip
    directory = tmp_path_factory.mktemp("policy")
    save_model(LlamaForCausalLM(config), tokenizer, directory)
    return directory


@pytest.fixture(scope="session")
def reward_model_dir(policy_dir, tmp_path_factory):
    torch.manual_seed(1)
    model, tokenizer = new_reward_model(policy_dir)
    directory = tmp_path_factory.mktemp("reward-model")
    save_model(model, tokenizer, directory)
    return directory


def row(number, **changes):
    """Asks for a reply with a digit standing alone in it."""
    values = {
        "id": f"toy/{number}",
        "messages": [
            {"role": "user", "content": "say a digit" + "." * (number % 7)},
            {"role": "assistant", "content": "7"},
        ],
        "source": "toy",
        "skill": "digits",
        "license": "Apache-2.0",
        "verifier": "contains",
        "ground_truth": list(string.digits),
    }
    return Conversation.model_validate(values | changes)


@pytest.fixture(scope="session")
def dataset_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("dataset")
    rows = [row(i) for i in range(20)]
    rows.append(row(20, skill="other"))
    rows.append(row(21, verifier=None, ground_truth=None))
    rows.append(row(22, messages=[{"role": "user", "content": "a" * 120}]))
    write_rows(directory / "rows.jsonl", rows)
    return directory


@pytest.fixture
def inputs(policy_dir, reward_model_dir, dataset_dir):
    return {"policy": policy_dir, "reward_model": reward_model_dir, "dataset": dataset_dir}

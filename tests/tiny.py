"""A world small enough to train on in a second: texts, rows, a Llama's shape, a stage context."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from caravan.data.io import write_rows
from caravan.data.records import Conversation, Message, Pair
from caravan.recipe import PretrainedBase, Resources
from caravan.stages import reference
from caravan.stages.configs import ReferenceStageConfig
from caravan.training.bpe import train_tokenizer
from caravan.training.models import prepare_torch, save_model
from caravan.training.pretrain import new_llama

TEXTS = [f"The camel carries {i} bags of salt to the town of Orsa." for i in range(40)]
ONE_CORE = Resources(cpus=1)
SHAPE = PretrainedBase(
    vocab_size=320,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=64,
    documents=200,
    max_steps=6,
    tokens_per_step=256,
    resources=ONE_CORE,
)


class Stopped(BaseException):
    """Stands for the end of the process."""


class Evicting:
    """Mixed into a context: sends this process SIGTERM when step `after` is done, as the end of a
    pod does."""

    after: int

    def progress(self, done: int, total: int) -> None:
        if done == self.after:
            self.after = -1
            self.disturb()

    def disturb(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


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
            self.stop_at = None
            raise Stopped


def conversations(count: int = 20) -> list[Conversation]:
    return [
        Conversation(
            id=f"t/{i}",
            messages=(
                Message(role="user", content=f"Carry {i}."),
                Message(role="assistant", content=TEXTS[i][: 10 + 2 * i]),
            ),
            source="t",
            skill="s",
            license="Apache-2.0",
        )
        for i in range(count)
    ]


def pairs(count: int = 20) -> list[Pair]:
    return [
        Pair(
            id=row.id,
            prompt=row.prompt,
            chosen=row.messages[-1].content,
            rejected=row.messages[-1].content[::-1][:20],
            chosen_model="a",
            rejected_model="b",
            chosen_rating=5,
            rejected_rating=1,
            source="t",
            skill="s",
        )
        for row in conversations(count)
    ]


def write_inputs(root: Path) -> dict[str, Path]:
    """A model, a dataset, pairs and their reference log-probabilities as artifact directories, by
    the name of the stage's input."""
    prepare_torch(cpus=1, seed=3)
    tokenizer = train_tokenizer(TEXTS, vocab_size=SHAPE.vocab_size, model_max_length=64)
    save_model(new_llama(SHAPE, tokenizer), tokenizer, root / "model")
    write_rows(root / "dataset" / "rows.jsonl", conversations())
    write_rows(root / "pairs" / "rows.jsonl", pairs())
    inputs = {name: root / name for name in ("model", "dataset", "pairs")}
    config = ReferenceStageConfig(
        max_length=64, tokens_per_pass=256, bf16=False, resources=ONE_CORE
    )
    context = Context(root / "reference")
    reference.run(config, inputs, context)
    return {**inputs, "reference": context.directory / "out" / "logprobs"}

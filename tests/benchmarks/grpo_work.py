"""The work of GRPO that Caravan and TRL are both given: a policy, prompts and a reward."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from tests.benchmarks import training_work as w
from transformers import PreTrainedModel

GROUP = 8
MAX_COMPLETION = 128
LEARNING_RATE = 1e-5
SHAPE = w.WORK["pocket"]


@dataclass(frozen=True)
class Work:
    completions: int
    """Of an optimiser step."""
    beta: float
    steps: int

    @property
    def prompts(self) -> int:
        """Of an optimiser step."""
        return self.completions // GROUP


def policy() -> PreTrainedModel:
    """Random weights, but a reply ends after some 60 tokens: what all embeddings share in one
    dimension reaches the output head from any context, and speaks for the end token there."""
    model = w.model(SHAPE)
    with torch.no_grad():
        embeddings = model.get_input_embeddings().weight
        embeddings[:, 0] = 2.0
        embeddings[w.EOS, 0] = 4.0
    model.config.use_cache = model.generation_config.use_cache = True  # as a saved model has it
    return model


def prompts(work: Work) -> list[list[int]]:
    """In the order in which they are asked."""
    generator = np.random.default_rng(3)
    lengths = generator.integers(8, 64, work.steps * work.prompts, endpoint=True)
    return [generator.integers(w.SPECIAL, SHAPE.vocabulary, n).tolist() for n in lengths]


def reward(text: str) -> float:
    """1 where more words of the reply have even numbers than odd ones."""
    numbers = [int(word[1:]) for word in text.split()]
    return float(sum(number % 2 == 0 for number in numbers) > len(numbers) / 2)

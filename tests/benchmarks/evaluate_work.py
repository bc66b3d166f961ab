"""The work that Caravan's evaluation and lm-evaluation-harness are both given: a model and what it
is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tests.benchmarks import training_work as w

from caravan.data.records import EvalInstance
from caravan.pocket.tasks import instances
from caravan.training.bpe import train_tokenizer
from caravan.training.models import prepare_torch, save_model

TASKS = {"math": "pocket-math", "constraints": "pocket-constraints"}
QUESTIONS = 100
"""Of each task."""
EXAMPLES = 6
"""In front of a question with options."""
MAX_COMPLETION = 128
BATCH = 128
"""Sequences decoded at once."""
SHAPE = w.WORK["pocket"]
SCALE, END_SCALE = 3.0, 1.6


def questions(task: str) -> list[EvalInstance]:
    return list(instances(TASKS[task], QUESTIONS))


def options() -> list[dict[str, Any]]:
    """Word problems after others with their answers, in one turn; each with four answers of which
    one is right."""
    solved = [
        (q.messages[-1].content, int(q.ground_truth))
        for q in instances("pocket-math", QUESTIONS + EXAMPLES)
    ]
    before = "".join(f"{text}\nThe answer is {value}.\n\n" for text, value in solved[QUESTIONS:])
    return [
        {
            "prompt": before + text,
            "options": [f"The answer is {value + more}." for more in (0, 1, 2, 10)],
            "answer": f"The answer is {value}.",
        }
        for text, value in solved[:QUESTIONS]
    ]


def write_model(directory: Path) -> None:
    """The model of the pocket recipe with random weights, so large that a greedy reply does not
    repeat itself; what the end token is embedded as is larger still, so that replies end."""
    prepare_torch(1, 0)
    texts = [q.messages[-1].content for task in TASKS for q in questions(task)]
    tokenizer = train_tokenizer(texts, vocab_size=SHAPE.vocabulary, model_max_length=SHAPE.window)
    model = w.model(SHAPE)
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim == 2:
                weights *= SCALE
        model.get_input_embeddings().weight[tokenizer.eos_token_id] *= END_SCALE
    save_model(model, tokenizer, directory)

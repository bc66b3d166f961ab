"""python -m tests.benchmarks.grpo_side SIDE COMPLETIONS BETA: one side of a comparison, in its own
process; trains anew for every number of steps that it reads, and prints what it measured as JSON.

Measured is the time from the end of the second step to the end of the last one. Generation is what
lies between prompts and completions with their rewards; the update is all the rest.
"""

from __future__ import annotations

import copy
import gc
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.benchmarks import grpo_work as g
from tests.benchmarks import training_work as w
from tests.benchmarks.training_side import now, peak, reset_peak

from caravan.data.records import Conversation
from caravan.recipe import RLVRConfig
from caravan.training.frozen import Frozen
from caravan.training.models import place, prepare_torch
from caravan.training.rl import trainer as rl
from caravan.training.rl.learner import RLModels
from caravan.training.rl.rollout import RLPrompt
from caravan.training.rl.samplers import ModelSampler
from caravan.verifiers.verdict import Verdict

WARM_UP = 2
THREADS = int(os.environ.get("OMP_NUM_THREADS", "1"))


@dataclass
class Marks:
    """What a side measured, at the end of each step."""

    seconds: list[float] = field(default_factory=list)
    generation: list[float] = field(default_factory=list)
    """Seconds of it, since the first step."""
    tokens: list[int] = field(default_factory=list)
    """Of completions, since the first step."""
    start_mib: float = 0.0
    """Resident before the first step."""
    peak_mib: float = 0.0
    """The most from then on."""
    spent: float = 0.0
    """On generation so far."""

    def timed(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        def generate_and_note(*args: Any, **kwargs: Any) -> Any:
            started = now()
            result = generate(*args, **kwargs)
            self.spent += now() - started
            return result

        return generate_and_note

    def end(self, tokens: int) -> None:
        """A step has ended, with so many tokens until then."""
        self.seconds.append(now())
        self.generation.append(self.spent)
        self.tokens.append(tokens)


def caravan(work: g.Work, *, bf16: bool) -> Marks:
    device = prepare_torch(THREADS, 0)
    policy = place(g.policy(), device, gradient_checkpointing=False).eval()
    reference = Frozen(copy.deepcopy(policy)) if work.beta else None
    config = RLVRConfig(
        algorithm={"kind": "grpo", "num_generations": g.GROUP, "scale_rewards": False},
        beta=work.beta,
        learning_rate=g.LEARNING_RATE,
        lr_scheduler_type="constant",
        warmup_ratio=0.0,
        adam_epsilon=1e-8,
        prompts_per_step=work.prompts,
        max_steps=work.steps,
        max_length=g.SHAPE.window,
        tokens_per_pass=g.SHAPE.tokens_per_pass,
        sampling={"temperature": 1.0, "max_completion_length": g.MAX_COMPLETION},
        verification_reward=1.0,
        missing_eos_reward=None,
        bf16=bf16,
        resources={"cpus": THREADS},
    )
    tokenizer = w.tokenizer(g.SHAPE)
    models = RLModels(policy, tokenizer, ModelSampler(policy, tokenizer), reference, None)
    trainer = rl.RLTrainer(models, config, {"even": _verify}, 0, device, cpus=THREADS)
    prompts = [RLPrompt(_row(i, w.words(ids)), tuple(ids)) for i, ids in enumerate(g.prompts(work))]
    marks, tokens = Marks(), 0
    collect = rl.collect
    rl.collect = marks.timed(collect)
    try:
        marks.start_mib = reset_peak()
        for step in range(work.steps):
            first = step * work.prompts
            result = trainer.step(step, prompts[first : first + work.prompts])
            tokens += int(result.rollouts.lengths.sum())
            marks.end(tokens)
        marks.peak_mib = peak()
    finally:
        rl.collect = collect
    return marks


def _row(number: int, text: str) -> Conversation:
    return Conversation.model_validate({
        "id": f"words/{number}", "messages": [{"role": "user", "content": text}],
        "source": "words", "skill": "words", "license": "Apache-2.0", "verifier": "even",
    })  # fmt: skip


def _verify(completion: str, _: Any) -> Verdict:
    score = g.reward(completion)
    return Verdict(score == 1.0, score)


def trl(work: g.Work, **options: Any) -> Marks:
    from datasets import Dataset, disable_caching, disable_progress_bars
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    disable_caching()
    disable_progress_bars()
    marks, tokens = Marks(), [0]

    class Trainer(GRPOTrainer):  # type: ignore[misc]
        def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
            result = super()._generate_single_turn(*args, **kwargs)
            tokens[0] += sum(map(len, result[0]))
            return result

    class Marker(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            marks.start_mib = reset_peak()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            marks.end(tokens[0])

    with tempfile.TemporaryDirectory() as directory:
        model = g.policy()
        if work.beta:  # TRL reads its reference
            model.save_pretrained(directory)
            model.config._name_or_path = directory
        settings = {
            "output_dir": directory,
            "num_generations": g.GROUP,
            "max_completion_length": g.MAX_COMPLETION,
            "temperature": 1.0,
            "beta": work.beta,
            "use_bias_correction_kl": False,
            "loss_type": "dapo",  # over all tokens of the step, as here
            "scale_rewards": "none",
            "learning_rate": g.LEARNING_RATE,
            "lr_scheduler_type": "constant",
            "max_steps": work.steps,
            "per_device_train_batch_size": work.completions,
            "gradient_accumulation_steps": 1,
            "shuffle_dataset": False,
            "logging_steps": 10,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": True,
            "dataloader_pin_memory": False,
            "seed": 0,
        } | options
        trainer = Trainer(
            model=model,
            reward_funcs=lambda completions, **_: list(map(g.reward, completions)),
            args=GRPOConfig(**settings),
            train_dataset=Dataset.from_dict({"prompt": list(map(w.words, g.prompts(work)))}),
            processing_class=w.tokenizer(g.SHAPE),
            callbacks=[Marker()],
        )
        trainer._generate = marks.timed(trainer._generate)
        trainer._calculate_rewards = marks.timed(trainer._calculate_rewards)
        trainer.train()
        marks.peak_mib = peak()
    return marks


SIDES: dict[str, Callable[[g.Work], Marks]] = {
    "caravan": lambda work: caravan(work, bf16=True),
    "caravan-fp32": lambda work: caravan(work, bf16=False),
    "trl-default": lambda work: trl(work),
    "trl-bf16": lambda work: trl(work, bf16=True, gradient_checkpointing=False),
    "trl-fp32": lambda work: trl(work, bf16=False, gradient_checkpointing=False),
    "trl-static": lambda work: trl(
        work, bf16=False, gradient_checkpointing=False, cache_implementation="static"
    ),
    "trl-continuous": lambda work: trl(
        work, bf16=False, gradient_checkpointing=False, use_transformers_continuous_batching=True
    ),
}


def main(arguments: Sequence[str]) -> None:
    side, completions, beta = arguments
    for line in sys.stdin:
        marks = SIDES[side](g.Work(int(completions), float(beta), int(line)))
        measured = {
            name: values[-1] - values[WARM_UP - 1]
            for name, values in asdict(marks).items()
            if isinstance(values, list)
        }
        measured["completions"] = (int(line) - WARM_UP) * int(completions)
        gc.collect()
        print("MARKS", json.dumps(asdict(marks) | measured))
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])

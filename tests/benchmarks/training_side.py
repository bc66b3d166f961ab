"""python -m tests.benchmarks.training_side TASK SIDE WORK: one side of a comparison, in its own
process; prints what it measured as JSON on the last line.

Measured is the time from the end of the second optimiser step to the end of the last one: imports,
tokenising and the first, slower steps are left out on both sides. The reference pass of DPO is
measured for itself.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from tests.benchmarks import training_work as w

from caravan.recipe import DPOConfig, SFTConfig
from caravan.training.batching import StepSampler
from caravan.training.dpo import dpo_job, reference_logprobs
from caravan.training.models import prepare_torch
from caravan.training.sft import sft_job

WARM_UP = 2
LEARNING_RATE = 1e-4
BETA = 5.0


@dataclass
class Marks:
    """What a side measured."""

    cpu: list[float] = field(default_factory=list)
    """Process seconds at the end of each step."""
    losses: list[float] = field(default_factory=list)
    """Of each step."""
    preparation: float = 0.0
    """CPU-seconds of the reference pass."""
    start_mib: float = 0.0
    """Resident before the first step."""
    peak_mib: float = 0.0
    """Largest resident set from then on."""

    @property
    def seconds(self) -> float:
        return self.cpu[-1] - self.cpu[WARM_UP - 1]


class InOrder(StepSampler):
    """The rows as they come."""

    def step(self, index: int) -> list[int]:
        first = index * self.rows_per_step
        return list(range(first, min(first + self.rows_per_step, self.total_rows)))


def caravan(task: str, work: w.Work, *, bf16: bool) -> Marks:
    torch_threads = torch.get_num_threads()
    prepare_torch(torch_threads, 0)
    model = w.model(work)
    settings = {
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "warmup_ratio": 0.0,
        "num_train_epochs": 1,
        "max_length": 1024,
        "tokens_per_pass": work.tokens_per_pass,
        "bf16": bf16,
    }
    marks = Marks()
    if task == "sft":
        sft = SFTConfig(sequences_per_step=work.batch, **settings)
        job: Any = sft_job(model, w.token_rows(work), sft, pad_token_id=w.PAD, seed=0)
    else:
        dpo = DPOConfig(pairs_per_step=work.batch, beta=BETA, **settings)
        rows = w.pair_rows(work)
        started = time.process_time()
        reference = reference_logprobs(model, rows, dpo, pad_token_id=w.PAD)
        marks.preparation = time.process_time() - started
        job = dpo_job(model, rows, reference, dpo, pad_token_id=w.PAD, seed=0)
    job.__dict__["sampler"] = InOrder(**{
        name: getattr(job.sampler, name) for name in ("rows", "rows_per_step", "total_rows", "seed")
    })  # fmt: skip
    marks.start_mib = reset_peak()
    for metrics in job.steps(bf16=bf16):
        marks.cpu.append(time.process_time())
        marks.losses.append(metrics.values["loss"])
    marks.peak_mib = peak()
    return marks


def trl(task: str, work: w.Work, **options: Any) -> Marks:
    from datasets import Dataset, disable_caching, disable_progress_bars
    from transformers import TrainerCallback
    from trl import DPOConfig as TRLDPOConfig
    from trl import DPOTrainer, SFTTrainer
    from trl import SFTConfig as TRLSFTConfig

    disable_caching()
    disable_progress_bars()
    marks = Marks()

    class Marker(TrainerCallback):  # type: ignore[misc]
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            marks.start_mib = reset_peak()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            marks.cpu.append(time.process_time())

        def on_log(self, _: Any, __: Any, ___: Any, logs: dict[str, float], **____: Any) -> None:
            if "loss" in logs:
                marks.losses.append(logs["loss"])

    model, tokenizer = w.model(work), w.tokenizer(work)
    packed = options.get("packing", False)
    with tempfile.TemporaryDirectory() as directory:
        model.name_or_path = directory  # DPO asks for it
        settings = {
            "output_dir": directory,
            "learning_rate": LEARNING_RATE,
            "lr_scheduler_type": "constant",
            "num_train_epochs": 1,
            "max_length": 1024,
            "per_device_train_batch_size": work.batch,
            "train_sampling_strategy": "sequential",
            "logging_steps": 1 if options.pop("log_every_step", False) else 10,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": True,
            "dataloader_pin_memory": False,
            "seed": 0,
        } | options
        common = {"model": model, "processing_class": tokenizer, "callbacks": [Marker()]}
        if task == "sft":
            rows = w.token_rows(work)
            if packed:  # as many tokens a step, in rows of max_length of which no batch is padded
                bins = max(1, round(sum(row.length for row in rows) / work.steps / 1024))
                settings |= {"per_device_train_batch_size": bins}
            columns = {
                "input_ids": [row.input_ids for row in rows],
                "labels": [
                    [i if kept else -100 for i, kept in zip(r.input_ids, r.loss_mask, strict=True)]
                    for r in rows
                ],
            }
            trainer = SFTTrainer(
                args=TRLSFTConfig(**settings), train_dataset=Dataset.from_dict(columns), **common
            )
        else:
            pairs = w.pair_rows(work)
            sizes = [pair.chosen.loss_mask.index(True) for pair in pairs]
            columns = {
                "prompt": [
                    w.words(p.chosen.input_ids[:n]) + " " for p, n in zip(pairs, sizes, strict=True)
                ],
                "chosen": [
                    w.words(p.chosen.input_ids[n:]) for p, n in zip(pairs, sizes, strict=True)
                ],
                "rejected": [
                    w.words(p.rejected.input_ids[n:]) for p, n in zip(pairs, sizes, strict=True)
                ],
            }
            settings |= {"loss_type": ["sigmoid_norm"], "beta": BETA}
            original = DPOTrainer._precompute_ref_logps

            def timed(*args: Any, **kwargs: Any) -> Any:
                started = time.process_time()
                result = original(*args, **kwargs)
                marks.preparation = time.process_time() - started
                return result

            DPOTrainer._precompute_ref_logps = timed
            trainer = DPOTrainer(
                args=TRLDPOConfig(**settings), train_dataset=Dataset.from_dict(columns), **common
            )
            for ours, theirs in zip(pairs, trainer.train_dataset, strict=True):
                for side in ("chosen", "rejected"):
                    ids = theirs["prompt_ids"] + theirs[f"{side}_ids"]
                    assert ids == getattr(ours, side).input_ids, "both sides train on the same ids"
        trainer.train()
        tokens = sum(w.lengths(work)) if task == "sft" else None
        assert tokens is None or trainer._total_train_tokens == tokens, "every token is trained on"
        marks.peak_mib = peak()
    return marks


BEST: dict[str, Any] = {"bf16": True, "gradient_checkpointing": False}
SIDES: dict[str, Callable[[str, w.Work], Marks]] = {
    "caravan": lambda task, work: caravan(task, work, bf16=True),
    "caravan-fp32": lambda task, work: caravan(task, work, bf16=False),
    # As TRL ships: padded, gradient checkpointing, bf16, reference model asked in every step.
    "trl-default": lambda task, work: trl(task, work),
    "trl-fp32": lambda task, work: trl(
        task, work, bf16=False, gradient_checkpointing=False, log_every_step=True
    ),
    "trl-padded": lambda task, work: trl(task, work, **BEST, **PRECOMPUTED[task]),
    "trl-grouped": lambda task, work: trl(
        task, work, **BEST, **PRECOMPUTED[task], train_sampling_strategy="group_by_length"
    ),
    "trl-packed": lambda task, work: trl(task, work, **BEST, packing=True),
}
PRECOMPUTED: dict[str, dict[str, Any]] = {
    "sft": {},
    "dpo": {"precompute_ref_log_probs": True},
}


def reset_peak() -> float:
    """Start to measure the largest resident set anew; gives the present one, in MiB."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak() -> float:
    return _status("VmHWM")


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def main(arguments: Sequence[str]) -> None:
    task, side, work = arguments
    marks = SIDES[side](task, w.WORK[work])
    print(json.dumps(asdict(marks) | {"seconds": marks.seconds}))


if __name__ == "__main__":
    main(sys.argv[1:])

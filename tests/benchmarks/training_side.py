"""python -m tests.benchmarks.training_side TASK SIDE WORK: one side of a comparison, in its own
process; trains anew for every number of steps that it reads, and prints what it measured as JSON.

Measured is the time from the end of the second optimiser step to the end of the last one: imports,
tokenising and the first, slower steps are left out on both sides. The reference pass of DPO is
measured for itself.
"""

from __future__ import annotations

import copy
import gc
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tests.benchmarks import training_work as w
from tests.benchmarks.flash_for_trl import use_flash_attention

from caravan.recipe import DPOConfig, SFTConfig
from caravan.training import attention, models
from caravan.training.batching import StepSampler
from caravan.training.dpo import dpo_job
from caravan.training.frozen import Frozen
from caravan.training.models import place, prepare_torch
from caravan.training.reference import reference_logprobs
from caravan.training.sft import sft_job

WARM_UP = 2
THREADS = int(os.environ.get("OMP_NUM_THREADS", "1"))
COMPARED = ("loss", "logps/chosen", "logps/rejected")
LEARNING_RATE = 1e-4
BETA = 5.0


@dataclass
class Marks:
    """What a side measured."""

    ends: list[float] = field(default_factory=list)
    """Seconds at the end of each step, of the process on a CPU, of the clock on a GPU."""
    tokens: list[int] = field(default_factory=list)
    """Trained on until then, without padding; of SFT."""
    first: dict[str, float] = field(default_factory=dict)
    """What is reported of the first step: of its loss and log-probabilities."""
    preparation: float = 0.0
    """Seconds of the reference pass."""
    start_mib: float = 0.0
    """Resident before the first step; on a GPU, allocated."""
    peak_mib: float = 0.0
    """The most from then on."""

    @property
    def seconds(self) -> float:
        """Of the measured steps."""
        return self.ends[-1] - self.ends[WARM_UP - 1]


class InOrder(StepSampler):
    """The rows as they come."""

    def step(self, index: int) -> list[int]:
        first = index * self.rows_per_step
        return list(range(first, min(first + self.rows_per_step, self.total_rows)))


def caravan(task: str, work: w.Work, *, bf16: bool, compiled: bool = False) -> Marks:
    """`compiled`: what lies in a layer between its products and attention is PyTorch's to fuse."""
    device = prepare_torch(THREADS, 0)
    if compiled:  # instead of Liger's kernels
        models.use_fused_kernels = lambda *_: False
        attention.packed_attention = torch.compiler.disable(attention.packed_attention)
    model = place(w.model(work), device, gradient_checkpointing=work.gradient_checkpointing)
    if compiled:
        for layer in model.base_model.layers:
            layer.compile(dynamic=True)
    settings = {
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "warmup_ratio": 0.0,
        "num_train_epochs": 1,
        "max_length": work.window,
        "tokens_per_pass": work.tokens_per_pass,
        "bf16": bf16,
        "resources": {"cpus": THREADS},
    }
    marks = Marks()
    if task == "sft":
        sft = SFTConfig(sequences_per_step=work.batch, **settings)
        job: Any = sft_job(model, w.token_rows(work), sft, pad_token_id=w.PAD, seed=0)
    else:
        dpo = DPOConfig(pairs_per_step=work.batch, beta=BETA, **settings)
        rows = w.pair_rows(work)
        started = now()
        reference = reference_logprobs(
            Frozen(copy.deepcopy(model)), rows,
            tokens_per_pass=work.tokens_per_pass, bf16=bf16, pad_token_id=w.PAD,
        )  # fmt: skip
        marks.preparation = now() - started
        job = dpo_job(model, rows, reference, dpo, pad_token_id=w.PAD, seed=0)
    job.__dict__["sampler"] = InOrder(**{
        name: getattr(job.sampler, name) for name in ("rows", "rows_per_step", "total_rows", "seed")
    })  # fmt: skip
    marks.start_mib = reset_peak()
    for metrics in job.steps(bf16=bf16):
        marks.ends.append(now())
        marks.tokens.append(metrics.tokens + (marks.tokens[-1] if marks.tokens else 0))
        marks.first = marks.first or dict(metrics.values)
    marks.peak_mib = peak()
    return marks


def trl(task: str, work: w.Work, *, accumulation: int = 1, **options: Any) -> Marks:
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
            marks.ends.append(now())
            marks.tokens.append(int(trainer._total_train_tokens))

        def on_log(self, _: Any, __: Any, ___: Any, logs: dict[str, float], **____: Any) -> None:
            marks.first = marks.first or logs

    model, tokenizer = w.model(work), w.tokenizer(work)
    if torch.cuda.is_available():
        use_flash_attention(model)
    packed = options.get("packing", False)
    with tempfile.TemporaryDirectory() as directory:
        model.name_or_path = directory  # precomputing asks for it
        settings = {
            "output_dir": directory,
            "learning_rate": LEARNING_RATE,
            "lr_scheduler_type": "constant",
            "num_train_epochs": 1,
            "max_length": work.window,
            "per_device_train_batch_size": work.batch // accumulation,
            "gradient_accumulation_steps": accumulation,
            "train_sampling_strategy": "sequential",
            "logging_steps": 1 if options.pop("log_every_step", False) else 10,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": not torch.cuda.is_available(),
            "dataloader_pin_memory": torch.cuda.is_available(),
            "seed": 0,
        } | options
        common = {"model": model, "processing_class": tokenizer, "callbacks": [Marker()]}
        if task == "sft":
            rows = w.token_rows(work)
            if packed:  # as many tokens a step, in rows of max_length of which no batch is padded
                bins = sum(row.length for row in rows) / work.steps / work.window
                per_pass = max(1, min(round(bins), work.tokens_per_pass // work.window))
                settings |= {
                    "per_device_train_batch_size": per_pass,
                    "gradient_accumulation_steps": max(1, round(bins / per_pass)),
                }
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
                "length": [pair.length for pair in pairs],  # for grouping
            }
            if not options.get("precompute_ref_log_probs"):
                common["ref_model"] = copy.deepcopy(model)
            settings |= {"loss_type": ["sigmoid_norm"], "beta": BETA}
            original = DPOTrainer._precompute_ref_logps

            def timed(*args: Any, **kwargs: Any) -> Any:
                started = now()
                result = original(*args, **kwargs)
                marks.preparation = now() - started
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
    "caravan-compiled": lambda task, work: caravan(task, work, bf16=True, compiled=True),
    "caravan-fp32": lambda task, work: caravan(task, work, bf16=False),
    # As TRL ships: padded, gradient checkpointing, bf16, reference model asked in every step.
    "trl-default": lambda task, work: trl(task, work),
    "trl-fp32": lambda task, work: trl(
        task, work, bf16=False, gradient_checkpointing=False, log_every_step=True
    ),
    "trl-padded": lambda task, work: trl(task, work, **BEST, **PRECOMPUTED[task]),
    "trl-grouped": lambda task, work: trl(
        task,
        work,
        **BEST,
        **PRECOMPUTED[task],
        train_sampling_strategy="group_by_length",
        remove_unused_columns=task == "sft",  # or the lengths are removed
    ),
    "trl-packed": lambda task, work: trl(task, work, **BEST, packing=True),
    # For a GPU: what `gpu_training` compares.
    "trl-gpu-sft": lambda task, work: trl(task, work, **gpu_options(work), packing=True),
    "trl-gpu-dpo": lambda task, work: trl(
        task,
        work,
        **gpu_options(work),
        **PRECOMPUTED["dpo"],
        accumulation=work.trl_accumulation,
        train_sampling_strategy="group_by_length",
        remove_unused_columns=False,
    ),
}
PRECOMPUTED: dict[str, dict[str, Any]] = {
    "sft": {},
    "dpo": {"precompute_ref_log_probs": True},
}


def gpu_options(work: w.Work) -> dict[str, Any]:
    """TRL's best: Liger kernels where they are installed; flash attention is set on the model."""
    return {
        "bf16": True,
        "gradient_checkpointing": work.gradient_checkpointing,
        "use_liger_kernel": installed("liger_kernel") and torch.cuda.is_available(),
    }


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def now() -> float:
    """Seconds: of the process, or of the clock once the GPU has done all it was given."""
    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def reset_peak() -> float:
    """Start to measure the most memory anew; gives what is in use, in MiB."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return _status("VmHWM")


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def main(arguments: Sequence[str]) -> None:
    task, side, name = arguments
    for line in sys.stdin:
        marks = SIDES[side](task, replace(w.WORK[name], steps=int(line)))
        first = {key: value for key, value in marks.first.items() if key in COMPARED}
        measured = {
            "seconds": marks.seconds,
            "tokens": marks.tokens[-1] - marks.tokens[WARM_UP - 1],
            "rows": (int(line) - WARM_UP) * w.WORK[name].batch,
        }
        gc.collect()
        torch.cuda.empty_cache()  # for the other side
        print("MARKS", json.dumps(asdict(marks) | {"first": first} | measured))
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])

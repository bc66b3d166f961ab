"""python -m tests.benchmarks.gpu_training [WORK ...]: training on one GPU against TRL at its best.

Random weights in the shapes of Llama 3.2 1B and 3B, rows of up to 4,096 tokens. Both sides compute
as the stages do: weights, gradients and optimiser state in float32, passes cast to bfloat16. That
is 18 bytes a parameter before activations, so a model of 8B does not fit one card. TRL packs SFT
rows (best-fit decreasing), groups pairs by length and computes the reference of DPO beforehand,
with flash attention (see `flash_for_trl`) and Liger kernels where `liger_kernel` is installed. Both
sides train on the same rows, about as many tokens in a pass, and take turns.

MFU = trained tokens per second x FLOPs per token / peak FLOP/s of the card, with

    FLOPs per token = 6 x parameters in matrix products + 6 x layers x hidden x mean context,

the second term being attention: 12 x layers x hidden for each of the keys that a token sees, half
of its row on average. What is computed twice (checkpointed layers, logits) does not count. Peaks
are the dense bfloat16 ones of NVIDIA's data sheets.

Writes gpu_training.json and prints Markdown. Nothing else is needed: no vLLM, no DeepSpeed.
"""

from __future__ import annotations

import importlib.metadata
import json
import statistics
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.benchmarks import training_work as w
from tests.benchmarks.training_compare import WARM_UP, Side
from tests.benchmarks.turns import spread

PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}
SIDES = {
    "sft": ("caravan", "caravan-compiled", "trl-gpu-sft"),
    "dpo": ("caravan", "trl-gpu-dpo"),
}
REPETITIONS = 5


def main(arguments: Sequence[str] = ("1B", "3B"), repetitions: int = REPETITIONS) -> None:
    results = []
    for name in arguments:
        for task, sides in SIDES.items():
            results += measure(task, name, sides, repetitions)
    Path("gpu_training.json").write_text(json.dumps(results, indent=2) + "\n")
    print(table(results))


def measure(task: str, name: str, sides: Sequence[str], repetitions: int) -> list[dict[str, Any]]:
    """The sides in turns; each gives its memory back before the other begins. The first turn, in
    which kernels are made, does not count."""
    work = w.WORK[name]
    every: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    with ExitStack() as stack:
        processes = {side: stack.enter_context(Side(task, side, name)) for side in sides}
        for process in processes.values():
            process.train(WARM_UP + 1)
        for _ in range(repetitions):
            for side, process in processes.items():
                every[side].append(process.train(work.steps))
                print(json.dumps([name, task, side, every[side][-1]]), file=sys.stderr, flush=True)
    results = []
    for side, runs in every.items():
        pairs = trained_tokens(work)
        rates = [(run["tokens"] if task == "sft" else pairs) / run["seconds"] for run in runs]
        results.append(
            {
                "work": name, "task": task, "side": side, "device": device(), "runs": runs,
                "tokens_per_second": rates,
                "mfu": [utilisation(work, rate) for rate in rates],
                "peak_gib": max(run["peak_mib"] for run in runs) / 1024,
                "versions": versions(),
            }
        )  # fmt: skip
    return results


def trained_tokens(work: w.Work) -> int:
    """Of pairs in the measured steps: both their sides, with the prompt in each."""
    rows = w.pair_rows(work)[WARM_UP * work.batch :]
    return sum(row.chosen.length + row.rejected.length for row in rows)


def utilisation(work: w.Work, tokens_per_second: float) -> float | None:
    """Model FLOPs utilisation; None on a device whose peak is not known."""
    peak = next((peak for name, peak in PEAK_FLOPS.items() if name in device()), None)
    if peak is None:
        return None
    return tokens_per_second * flops_per_token(work) / peak


def flops_per_token(work: w.Work) -> float:
    heads = work.hidden // work.head_size
    key_heads = heads if work.key_heads is None else work.key_heads
    attention = 2 * work.hidden**2 + 2 * work.hidden * key_heads * work.head_size
    layer = attention + 3 * work.hidden * work.intermediate
    # Only tokens that are trained on reach the output head.
    head = work.hidden * work.vocabulary * (1 - work.prompt_share)
    rows = w.lengths(work).astype(np.float64)
    context = float((rows**2).sum() / rows.sum())  # mean length of the row that a token is in
    return 6 * (work.layers * layer + head) + 6 * work.layers * work.hidden * context


def device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def versions() -> dict[str, str]:
    names = ("torch", "transformers", "trl", "liger_kernel", "flash_attn")
    known = {}
    for name in names:
        try:
            known[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            known[name] = "none"
    return known


def table(results: Sequence[dict[str, Any]]) -> str:
    lines = [
        "| model | task | side | tokens/s | MFU | peak GiB | Caravan over it |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        ours = next(
            r["tokens_per_second"]
            for r in results
            if (r["work"], r["task"], r["side"]) == (result["work"], result["task"], "caravan")
        )
        ratio = statistics.median(ours) / statistics.median(result["tokens_per_second"])
        mfu = "" if result["mfu"][0] is None else f"{100 * statistics.median(result['mfu']):.1f} %"
        lines.append(
            f"| {result['work']} | {result['task']} | {result['side']} "
            f"| {spread(result['tokens_per_second'], 0)} | {mfu} | {result['peak_gib']:.1f} "
            f"| {ratio:.2f} |"
        )
    return "\n".join([*lines, "", f"{device()}, {versions()}"])


if __name__ == "__main__":
    main(sys.argv[1:] or ("1B", "3B"))

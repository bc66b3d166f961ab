"""python -m tests.benchmarks [NAME ...]: run the benchmarks; each prints Markdown."""

import sys

from tests.benchmarks import (
    dpo_vs_trl,
    grpo_vs_trl,
    pocket_seeds,
    sft_vs_trl,
    stage_overhead,
    submit,
)

BENCHMARKS = {
    "pocket_seeds": pocket_seeds.main,
    "stage_overhead": stage_overhead.main,
    "sft_vs_trl": sft_vs_trl.main,
    "dpo_vs_trl": dpo_vs_trl.main,
    "grpo_vs_trl": grpo_vs_trl.main,
    "submit": submit.main,
}

for name in sys.argv[1:] or BENCHMARKS:
    print(f"\n## {name}\n", flush=True)
    BENCHMARKS[name]()

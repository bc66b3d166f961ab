"""python -m tests.benchmarks [NAME ...]: run the benchmarks; each prints Markdown."""

import sys

from tests.benchmarks import (
    dashboard_pages,
    decontaminate,
    dpo_vs_trl,
    evaluate_vs_lm_eval,
    grpo_vs_trl,
    near_duplicates,
    pocket_seeds,
    sft_vs_trl,
    stage_overhead,
    submit,
    tracking_vs_mlflow,
)

BENCHMARKS = {
    "pocket_seeds": pocket_seeds.main,
    "stage_overhead": stage_overhead.main,
    "sft_vs_trl": sft_vs_trl.main,
    "dpo_vs_trl": dpo_vs_trl.main,
    "grpo_vs_trl": grpo_vs_trl.main,
    "submit": submit.main,
    "decontaminate": decontaminate.main,
    "near_duplicates": near_duplicates.main,
    "evaluate_vs_lm_eval": evaluate_vs_lm_eval.main,
    "tracking_vs_mlflow": tracking_vs_mlflow.main,
    "dashboard_pages": dashboard_pages.main,
}

for name in sys.argv[1:] or BENCHMARKS:
    print(f"\n## {name}\n", flush=True)
    BENCHMARKS[name]()

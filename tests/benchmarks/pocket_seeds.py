"""What each stage of the pocket recipe changes, over three seeds."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.caravan import POCKET, run

from caravan.evals.models import MODELS

SEEDS = (17, 18, 19)


def main() -> None:
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as home:
            measured = run(Path(home), POCKET, "--seed", str(seed))
        print(f"seed {seed}: {measured.seconds:.0f} s, peak {measured.peak_mib:.0f} MiB\n")
        print(table(measured.shown["scores"]), flush=True)


def table(scores: list[dict[str, Any]]) -> str:
    """Scores of the models, then the report's comparisons, as Markdown."""
    found = {(s["task"], s["metric"], s["stage"]): s for s in scores}
    rows = dict.fromkeys((s["task"], s["metric"]) for s in scores if s["stage"] in MODELS)
    lines = [f"| task | metric | {' | '.join(MODELS)} | n |", "|---" * (len(MODELS) + 3) + "|"]
    for task, metric in rows:
        cells = [found.get((task, metric, model)) for model in MODELS]
        n = next(cell["n"] for cell in cells if cell)
        shown = " | ".join(f"{cell['value']:.3f}" if cell else "" for cell in cells)
        lines.append(f"| {task} | {metric} | {shown} | {n} |")
    lines += ["", "| comparison | metric | value | 95 % interval | n |", "|---|---|---|---|---|"]
    lines += [
        f"| {s['task']} | {s['metric']} | {s['value']:+.3f} | {s['low']:+.3f} to {s['high']:+.3f} "
        f"| {s['n']} |"
        for s in scores
        if s["stage"] == "report"
    ]
    return "\n".join(lines) + "\n"

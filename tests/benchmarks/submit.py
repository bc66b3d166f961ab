"""Seconds to compile a recipe's pipeline and submit it to a stand-in of Kubeflow Pipelines.

What follows the first request of a process costs no imports any more, so both are told.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "cluster"))

REPETITIONS = 2
GPUS = {"gpus": {"h100": {"node_selector": {"gpu": "h100"}}}}


def main() -> None:
    cpu, wall = time.thread_time(), time.perf_counter()
    from kfp_pipeline import End, Step
    from kfp_stand_in import StandIn

    from caravan.recipe.io import load_recipe
    from caravan.settings import Settings
    from caravan_pipelines.launch import kubeflow

    class Idle:
        """Nothing runs: what is measured is the launcher."""

        def run(self, step: Step, stop: threading.Event) -> End:
            stop.wait()
            return End(143)

    server = StandIn(lambda run, account: Idle())
    path = ROOT / "pipelines" / "recipes" / "tulu3-8b.yaml"
    print("| | seconds | CPU-seconds of the launching thread |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as home:
        settings = Settings(home=Path(home), kfp_url=server.url, cluster_profile=json.dumps(GPUS))
        Path(home, "personahub.jsonl").write_text("{}\n")  # which the recipe names
        for task in load_recipe(path).evaluate.tasks:
            assert task.path is not None
            file = Path(home, task.path)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("{}\n")
        for attempt in range(REPETITIONS):
            recipe = load_recipe(path)
            done = kubeflow.launch(recipe, settings, recipe_dir=Path(home))
            now_cpu, now = time.thread_time(), time.perf_counter()
            name = "first, with imports" if attempt == 0 else "next"
            print(f"| {name}: all of launch | {now - wall:.2f} | {now_cpu - cpu:.2f} |")
            print(f"| {name}: compile and submit | {done.seconds:.2f} | |")
            cpu, wall = time.thread_time(), time.perf_counter()
    server.close()


if __name__ == "__main__":
    main()

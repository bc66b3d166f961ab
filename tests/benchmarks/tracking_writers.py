"""python -m tests.benchmarks.tracking_writers SIDE ADDRESS WRITERS POINTS PAUSE: processes that log
metric points, begun at once; prints what they measured as JSON.

Each writer is a process of its own, as a stage is, forked from one that has imported what it needs.
Measured is from the first point to the end of whatever waits until all are with the server. This
file is read by the interpreter of either side, and so imports neither's packages at its top.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Log = Callable[[int], None]
"""Logs the point of a step."""


@contextmanager
def caravan(address: str, number: int) -> Any:
    """As `caravan.stages.execute` has it: a journal on disk, and a thread that delivers it."""
    from caravan.registry import Registry
    from caravan.stages.local_context import Journal, LocalContext, Reporter, Warned
    from caravan.stages.patience import patiently

    with Registry(address) as registry, tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        run = registry.create_run({}, name=f"writer-{number}", seed=number, recipe_digest="d" * 64)
        opened = registry.open_stage_run(run, "sft", "sft", f"{number}")
        journal, warned = Journal(directory / "metrics.jsonl"), Warned()
        reporter = Reporter(registry, opened.id, journal, warned, heartbeat_seconds=5)
        context = LocalContext(
            directory, seed=0, recipe_dir=directory, journal=journal, reporter=reporter
        )
        registry.start_stage_run(opened.id)
        reporter.start()
        yield lambda step: context.log(step, {"loss": 1 / (step + 1)})
        reporter.stop()
        patiently(reporter.deliver, 120)
        journal.close()


def mlflow(kind: str) -> Callable[[str, int], Any]:
    @contextmanager
    def side(address: str, number: int) -> Any:
        from mlflow import MlflowClient, flush_async_logging, set_tracking_uri
        from mlflow.entities import Metric

        set_tracking_uri(address)  # for the flush
        client = MlflowClient()
        run = client.create_run("0", run_name=f"writer-{number}").info.run_id
        waiting: list[Metric] = []

        def log(step: int) -> None:
            value = 1 / (step + 1)
            if kind == "batch":
                waiting.append(Metric("loss", value, int(1000 * time.time()), step))
                if len(waiting) == 1000:  # the most that it takes at once
                    client.log_batch(run, waiting)
                    waiting.clear()
            else:
                client.log_metric(run, "loss", value, step=step, synchronous=kind == "single")

        yield log
        if waiting:
            client.log_batch(run, waiting)
        if kind == "async":
            flush_async_logging()

    return side


@contextmanager
def trackio(address: str, number: int) -> Any:
    """Into the SQLite file of its project, as it does on one machine; `address` is not used."""
    import trackio as library

    library.init(project="writers", name=f"writer-{number}", auto_log_gpu=False)
    yield lambda step: library.log({"loss": 1 / (step + 1)}, step=step)
    library.finish()


SIDES: dict[str, Callable[[str, int], Any]] = {
    "caravan": caravan,
    "mlflow-single": mlflow("single"),
    "mlflow-async": mlflow("async"),
    "mlflow-batch": mlflow("batch"),
    "trackio": trackio,
}


def write(side: str, address: str, number: int, points: int, pause: float, ready: Any) -> Any:
    longest, told = 0.0, ""
    start, logged, cpu = time.time(), time.time(), time.process_time()
    try:
        with SIDES[side](address, number) as log:
            ready.wait()
            start, cpu = time.time(), time.process_time()
            for step in range(points):
                before = time.perf_counter()
                log(step)
                longest = max(longest, time.perf_counter() - before)
                if pause:
                    time.sleep(pause)
            logged = time.time()
    except Exception as error:
        ready.abort()  # or the others would wait for this one
        told = f"{type(error).__name__}: {error}"[:300]
    return {"start": start, "logged": logged, "end": time.time(), "longest": longest,
            "cpu": time.process_time() - cpu, "error": told}  # fmt: skip


def main(side: str, address: str, writers: str, points: str, pause: str) -> None:
    __import__(side.partition("-")[0])
    forking = multiprocessing.get_context("fork")
    ready, results = forking.Barrier(int(writers)), forking.SimpleQueue()

    def writer(number: int) -> None:
        results.put(write(side, address, number, int(points), float(pause), ready))

    processes = [forking.Process(target=writer, args=(i,)) for i in range(int(writers))]
    for process in processes:
        process.start()
    found = [results.get() for _ in processes]
    start = min(writer["start"] for writer in found)
    print("FOUND", json.dumps({
        "logged": max(writer["logged"] for writer in found) - start,
        "seconds": max(writer["end"] for writer in found) - start,
        "cpu": sum(writer["cpu"] for writer in found),
        "longest": max(writer["longest"] for writer in found),
        "errors": sorted({writer["error"] for writer in found} - {""}),
    }))  # fmt: skip


if __name__ == "__main__":
    main(*sys.argv[1:])

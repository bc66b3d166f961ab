"""python -m tests.benchmarks.tracking_search SIDE ADDRESS CALLS SERVER ...: finds runs as a page of
25 does; prints as JSON the milliseconds of every call, and those of CPU time that a call takes here
and in the processes that serve it.

Of Caravan the page is what its dashboard reads for it: runs, scores and their means. This file is
read by the interpreter of either side, and so imports neither's packages at its top.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable

from tests.benchmarks.process_tree import cpu_seconds

PAGE = 25


def caravan(address: str) -> dict[str, Callable[[], object]]:
    from caravan.evals.headlines import headlines
    from caravan.registry import Registry, RunSearch, State

    registry = Registry(address)

    def page(search: RunSearch) -> object:
        runs = registry.runs(registry.find_runs(search)[:PAGE])
        assert len(runs) == PAGE
        return headlines(registry.scores(*(run.id for run in runs)))

    return {
        "first page": lambda: page(RunSearch()),
        "failed runs": lambda: page(RunSearch(states=[State.FAILED])),
        "a tag": lambda: page(RunSearch(words=["sweep-77"])),
        "best score first": lambda: page(RunSearch(best="dpo")),
    }


def mlflow(address: str) -> dict[str, Callable[[], object]]:
    from mlflow import MlflowClient

    client = MlflowClient(address)

    def page(order: str = "attributes.start_time DESC", where: str = "") -> None:
        found = client.search_runs(["0"], where, max_results=PAGE, order_by=[order])
        assert len(found) == PAGE

    return {
        "first page": page,
        "failed runs": lambda: page(where="attributes.status = 'FAILED'"),
        "a tag": lambda: page(where="tags.sweep = '77'"),
        "best score first": lambda: page("metrics.`dpo/task-1` DESC"),
    }


def main(side: str, address: str, calls: str, *servers: str) -> None:
    logging.disable()
    found: dict[str, list[float]] = {}
    cpu: dict[str, float] = {}

    def used() -> float:
        return time.process_time() + sum(cpu_seconds(int(server)) for server in servers)

    for name, call in {"caravan": caravan, "mlflow": mlflow}[side](address).items():
        call()  # connections, and what is compiled once
        before = used()
        for _ in range(int(calls)):
            start = time.perf_counter()
            call()
            found.setdefault(name, []).append(1000 * (time.perf_counter() - start))
        cpu[name] = 1000 * (used() - before) / int(calls)
    print("FOUND", json.dumps({"calls": found, "cpu": cpu}))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Prometheus metrics, computed from the registry when they are asked for.

    caravan metrics serve --port 9090

Runs that have ended are counted once and kept: their numbers do not change while they rest.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from caravan.errors import RegistryError, require
from caravan.operations.costs import StageCost, project_of, stage_cost
from caravan.registry import Registry, RunRow, StageRunRow, State

TOKENS = "num_tokens"
"""Name of the final number of trained tokens."""
SCRAPE_SECONDS = 5.0
"""Scrapes closer together are given the same numbers."""


def _sums() -> defaultdict[Any, float]:
    return defaultdict(float)


@dataclass
class Totals:
    """The numbers of one run, or of all."""

    runs: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By project and state."""
    stages: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By stage and state."""
    durations: dict[str, list[float]] = field(default_factory=dict)
    """Of each stage: how many succeeded, and their seconds."""
    gpu_hours: dict[tuple[str, str], float] = field(default_factory=_sums)
    """By project and type of GPU."""
    core_hours: dict[str, float] = field(default_factory=_sums)
    money: dict[str, float] = field(default_factory=_sums)
    tokens: dict[str, float] = field(default_factory=_sums)
    queued: list[float] = field(default_factory=lambda: [0, 0.0])

    def add(self, other: Totals) -> None:
        pairs: tuple[tuple[dict[Any, Any], dict[Any, Any]], ...] = (
            (self.runs, other.runs), (self.stages, other.stages),
            (self.gpu_hours, other.gpu_hours), (self.core_hours, other.core_hours),
            (self.money, other.money), (self.tokens, other.tokens),
        )  # fmt: skip
        for mine, theirs in pairs:
            for key, value in theirs.items():
                mine[key] += value
        for stage, (count, seconds) in other.durations.items():
            so_far = self.durations.setdefault(stage, [0, 0.0])
            so_far[0], so_far[1] = so_far[0] + count, so_far[1] + seconds
        self.queued = [self.queued[0] + other.queued[0], self.queued[1] + other.queued[1]]


def run_totals(run: RunRow, stages: list[StageRunRow], prices: Mapping[str, float]) -> Totals:
    found, project = Totals(), project_of(run)
    found.runs[project, run.state] = 1
    for stage in stages:
        found.stages[stage.stage, stage.state] += 1
        _add_cost(found, project, stage_cost(run.recipe, stage, prices))
        if stage.state is State.SUCCEEDED and not stage.reused_from:
            so_far = found.durations.setdefault(stage.stage, [0, 0.0])
            so_far[0], so_far[1] = so_far[0] + 1, so_far[1] + (stage.seconds or 0.0)
            tokens = stage.metrics.get(TOKENS, 0.0)
            found.tokens[stage.stage] += 0 if math.isnan(tokens) else tokens
    starts = [stage.started_at for stage in stages if stage.started_at]
    if starts:
        found.queued = [1, max(0.0, (min(starts) - run.created_at).total_seconds())]
    return found


def _add_cost(totals: Totals, project: str, cost: StageCost) -> None:
    totals.core_hours[project] += cost.core_hours
    totals.money[project] += cost.money or 0.0
    if cost.gpu_type:
        totals.gpu_hours[project, cost.gpu_type] += cost.gpu_hours


class Exporter:
    """What Prometheus collects."""

    def __init__(self, open_registry: Callable[[], Registry], prices: Mapping[str, float]) -> None:
        self._open_registry, self._prices = open_registry, prices
        self._registry: Registry | None = None
        self._ended: dict[str, tuple[datetime | None, tuple[str, ...], Totals]] = {}
        self._last: tuple[float, Totals | None] = (-math.inf, None)
        self._lock = threading.Lock()

    def describe(self) -> list[Any]:
        return []  # no scrape when it is registered

    def collect(self) -> Iterator[Any]:
        """The metrics; where the registry is away only `caravan_registry_up`, which is 0."""
        from prometheus_client.core import GaugeMetricFamily

        totals = self._totals()
        yield GaugeMetricFamily(
            "caravan_registry_up", "Whether the registry answers.", value=float(totals is not None)
        )
        if totals is not None:
            yield from families(totals)

    def _totals(self) -> Totals | None:
        with self._lock:
            at, totals = self._last
            if time.monotonic() - at >= SCRAPE_SECONDS:
                try:
                    totals = self._count()
                except RegistryError:
                    totals = None
                self._last = (time.monotonic(), totals)
            return totals

    def _count(self) -> Totals:
        if self._registry is None:
            self._registry = self._open_registry()
        everything = Totals()
        for run in self._registry.list_runs(limit=None):
            known = self._ended.get(run.id)
            if run.state.finished and known and known[:2] == (run.finished_at, run.tags):
                everything.add(known[2])
                continue
            found = run_totals(run, self._registry.stage_runs(run.id), self._prices)
            if run.state.finished:
                self._ended[run.id] = (run.finished_at, run.tags, found)
            everything.add(found)
        return everything


def families(totals: Totals) -> Iterator[Any]:
    """`totals` as metric families. Durations are in seconds, Prometheus' base unit; what devices
    have worked is in hours, as in the table of prices."""
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        SummaryMetricFamily,
    )

    runs = GaugeMetricFamily("caravan_runs", "Runs by state.", labels=["project", "state"])
    for (project, state), count in sorted(totals.runs.items()):
        runs.add_metric([project, state], count)
    yield runs
    stages = GaugeMetricFamily(
        "caravan_stage_runs", "Stage runs by state.", labels=["stage", "state"]
    )
    for (stage, state), count in sorted(totals.stages.items()):
        stages.add_metric([stage, state], count)
    yield stages
    durations = SummaryMetricFamily(
        "caravan_stage_duration_seconds",
        "Time of stage runs that succeeded, their last attempt; reused ones are left out.",
        labels=["stage"],
    )
    for stage, (number, seconds) in sorted(totals.durations.items()):
        durations.add_metric([stage], int(number), seconds)
    yield durations
    gpu_hours = CounterMetricFamily(
        "caravan_gpu_hours", "GPU-hours of all attempts.", labels=["project", "gpu_type"]
    )
    for (project, gpu_type), hours in sorted(totals.gpu_hours.items()):
        gpu_hours.add_metric([project, gpu_type], hours)
    yield gpu_hours
    for name, said, label, values in (
        ("caravan_core_hours", "Core-hours of stages without GPU.", "project", totals.core_hours),
        ("caravan_cost", "Money, by the table of prices.", "project", totals.money),
        ("caravan_trained_tokens", "Tokens that were trained on.", "stage", totals.tokens),
    ):
        family = CounterMetricFamily(name, said, labels=[label])
        for key, value in sorted(values.items()):
            family.add_metric([key], value)
        yield family
    yield SummaryMetricFamily(
        "caravan_queue_seconds",
        "From the launch of a run to the start of its first stage.",
        count_value=int(totals.queued[0]),
        sum_value=totals.queued[1],
    )


def serve(
    address: str, port: int, open_registry: Callable[[], Registry], prices: Mapping[str, float]
) -> tuple[Any, threading.Thread]:
    """Serve the metrics at `/metrics` from a thread; gives the server and the thread.

    Raises:
        MissingExtraError: prometheus-client is not installed.
        OSError: the port is taken.
    """
    prometheus = require("prometheus_client", extra="metrics", feature="serving metrics")
    collected = prometheus.CollectorRegistry()
    collected.register(Exporter(open_registry, prices))
    server, thread = prometheus.start_http_server(port, addr=address, registry=collected)
    return server, thread

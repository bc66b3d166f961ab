"""The registry against MLflow's tracking server on the same PostgreSQL, and trackio: writing
points, losing none, and finding runs among many.

MLflow and trackio want packages of their own: `make peers`.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
from tests.benchmarks import many_runs
from tests.benchmarks.process_tree import cpu_seconds
from tests.benchmarks.turns import spread
from tests.conftest import start_postgres
from tests.dashboard.dashboard_server import free_port, wait_until_up

from caravan.registry import Registry, upgrade

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / ".venv-trackers" / "bin" / "python"
REPETITIONS = 3
WRITERS = 32
SIDES = {"caravan": 1000, "mlflow-single": 50, "mlflow-async": 100, "mlflow-batch": 1000,
         "trackio": 1000}  # fmt: skip
"""The points of each writer; one request for each takes MLflow long."""
COUNTS = {
    "caravan": "SELECT count(*) FROM metric",
    "mlflow": "SELECT count(*) FROM metrics WHERE key = 'loss'",
}
AWAY_POINTS, PAUSE_SECONDS = 100, 0.2
"""Between two points of a writer while the database goes away."""
AWAY_SECONDS = 10
RUNS, CALLS = 10_000, 40


class Servers(NamedTuple):
    """Where each side writes to, and the processes that serve it."""

    data: Path
    addresses: dict[str, str]
    mlflow: int

    def of(self, side: str) -> list[int]:
        """The processes behind a side."""
        postmaster = int((self.data / "postmaster.pid").read_text().splitlines()[0])
        if side in ("caravan", "mlflow-database"):
            return [postmaster]
        return [] if side == "trackio" else [postmaster, self.mlflow]


def main() -> None:
    with tempfile.TemporaryDirectory() as home, servers(Path(home)) as both:
        print(conditions())
        ingest(both)
        away(both)
        find(both)
        ancestry(both)


@contextmanager
def servers(home: Path) -> Iterator[Servers]:
    """PostgreSQL with a database for each side, and MLflow's server with a worker for each of two
    cores, without the processes that would run its jobs."""
    data = Path(tempfile.mkdtemp(prefix="caravan-postgres-")) / "data"
    postgres = start_postgres(data)
    urls = {}
    with psycopg.connect(postgres.get_uri(), autocommit=True) as connection:
        connection.execute("ALTER SYSTEM SET max_connections = 300")
        for side in COUNTS:
            connection.execute(f"CREATE DATABASE {side}")
            urls[side] = postgres.get_uri().replace("/postgres?", f"/{side}?")
    postgres.cleanup()
    start_postgres(data)
    upgrade(urls["caravan"])
    port = free_port()
    with (home / "mlflow.log").open("wb") as log:
        process = subprocess.Popen(
            [PEERS, "-m", "mlflow", "server", "--workers", "2", "--port", str(port),
             "--backend-store-uri", urls["mlflow"],
             "--artifacts-destination", str(home / "mlartifacts")],
            stdout=log, stderr=log, cwd=home, start_new_session=True,
            env=os.environ
            | {
                "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                # Its asynchronous clients use more connections than the 15 it takes by itself.
                "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE": "100",
            },
        )  # fmt: skip
    addresses = {"caravan": urls["caravan"], "mlflow": f"http://127.0.0.1:{port}", "trackio": ""}
    try:
        wait_until_up(f"http://127.0.0.1:{port}/health", process)
        yield Servers(data, addresses | {"mlflow-database": urls["mlflow"]}, process.pid)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        start_postgres(data).cleanup()
        shutil.rmtree(data.parent)


def conditions() -> str:
    asked = "from importlib.metadata import version; print(version('mlflow'), version('trackio'))"
    peers = subprocess.run([PEERS, "-c", asked], capture_output=True, text=True, check=True).stdout
    return f"{date.today()}, MLflow and trackio {peers.strip()}, load {os.getloadavg()[0]:.0f}"


def measured(side: str, module: str, *arguments: str) -> dict[str, Any]:
    """What a module of this package measured in the interpreter of its side."""
    python = sys.executable if side.startswith("caravan") else PEERS
    with tempfile.TemporaryDirectory() as directory:
        done = subprocess.run(
            [python, "-m", f"tests.benchmarks.{module}", *arguments],
            env=os.environ | {"TRACKIO_DIR": directory}, text=True, check=True, cwd=ROOT,
            stdout=subprocess.PIPE,
        )  # fmt: skip
    line = next(line for line in done.stdout.splitlines() if line.startswith("FOUND "))
    return dict(json.loads(line.removeprefix("FOUND ")))


# --- writing ------------------------------------------------------------------------------------


def write(both: Servers, side: str, points: int, pause: float = 0.0) -> dict[str, Any]:
    """What `tracking_writers` measured, with CPU-seconds of the servers."""
    servers, address = both.of(side), both.addresses[side.partition("-")[0]]
    before = sum(cpu_seconds(server) for server in servers)
    found = measured(side, "tracking_writers", side, address, str(WRITERS), str(points), str(pause))
    return found | {"server": sum(cpu_seconds(server) for server in servers) - before}


def count(both: Servers, side: str) -> int:
    family = side.partition("-")[0]
    url = both.addresses["caravan" if family == "caravan" else "mlflow-database"]
    with psycopg.connect(url) as connection:
        row = connection.execute(COUNTS[family]).fetchone()
    assert row is not None
    return int(row[0])


def ingest(both: Servers) -> None:
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in range(REPETITIONS):
        for side, points in SIDES.items():
            found[side].append(write(both, side, points))
    print(f"\n{WRITERS} writers, {REPETITIONS} repetitions in turns\n")
    print("| side | points of a writer | µs of CPU a point | of the writer | of servers "
          "| seconds until all are there | longest call, ms |")  # fmt: skip
    print("|---|---|---|---|---|---|---|")
    for side, runs in found.items():
        assert not any(run["errors"] for run in runs), runs
        per_point = 1e6 / (WRITERS * SIDES[side])
        writer = [run["cpu"] * per_point for run in runs]
        server = [run["server"] * per_point for run in runs]
        both_of_them = [one + other for one, other in zip(writer, server, strict=True)]
        print(
            f"| {side} | {SIDES[side]} | {spread(both_of_them, 0)} | {spread(writer, 0)} "
            f"| {spread(server, 0)} "
            f"| {spread([run['seconds'] for run in runs], 1)} "
            f"| {spread([1000 * run['longest'] for run in runs], 0)} |",
            flush=True,
        )


def away(both: Servers) -> None:
    """The database stops in the middle and comes back."""
    print(
        f"\nPostgreSQL away for {AWAY_SECONDS} s while {WRITERS} writers log {AWAY_POINTS} points\n"
    )
    print("| side | points missing | longest call, s | errors |\n|---|---|---|---|")
    for side in ("caravan", "mlflow-single", "mlflow-async"):
        before = count(both, side)
        stopped = threading.Thread(target=interrupt, args=(both, side, before + WRITERS * 10))
        stopped.start()
        found = write(both, side, AWAY_POINTS, PAUSE_SECONDS)
        stopped.join()
        missing = before + WRITERS * AWAY_POINTS - count(both, side)
        print(f"| {side} | {missing} | {found['longest']:.1f} | {found['errors']} |", flush=True)


def interrupt(both: Servers, side: str, after: int) -> None:
    while count(both, side) < after:
        time.sleep(0.5)
    start_postgres(both.data).cleanup()
    time.sleep(AWAY_SECONDS)
    start_postgres(both.data)


# --- finding ------------------------------------------------------------------------------------


def find(both: Servers) -> None:
    """Runs among many: the sides take turns, each query so often in a turn."""
    many_runs.fill(both.addresses["caravan"], RUNS)
    many_runs.fill_mlflow(both.addresses["mlflow-database"], RUNS)
    sides = {
        "caravan": both.addresses["caravan"],
        "mlflow": both.addresses["mlflow"],
        "mlflow-database": both.addresses["mlflow-database"],
    }
    calls: dict[tuple[str, str], list[float]] = {}
    cpu: dict[tuple[str, str], list[float]] = {}
    for _ in range(REPETITIONS):
        for side, address in sides.items():
            servers, family = [str(server) for server in both.of(side)], side.partition("-")[0]
            run = measured(side, "tracking_search", family, address, str(CALLS), *servers)
            for name, milliseconds in run["calls"].items():
                calls.setdefault((side, name), []).extend(milliseconds)
                cpu.setdefault((side, name), []).append(run["cpu"][name])
    print(f"\n{RUNS} runs of 50 scores, {REPETITIONS} repetitions of {CALLS} calls\n")
    print("| side | page | CPU-ms a call | ms: p50, p95 |\n|---|---|---|---|")
    for side, name in calls:
        latency = percentiles(calls[side, name])
        print(f"| {side} | {name} | {spread(cpu[side, name], 0)} | {latency} |", flush=True)


def percentiles(milliseconds: list[float]) -> str:
    cuts = statistics.quantiles(milliseconds, n=20)
    return f"{statistics.median(milliseconds):.0f}, {cuts[18]:.0f}"


def ancestry(both: Servers) -> None:
    """All that an artifact of many was made from."""
    url = both.addresses["caravan"]
    many_runs.fill_ancestry(url, artifacts=10_000, descent=10)
    print("\n| ancestry among 10,000 artifacts | edges | ms: p50, p95 |\n|---|---|---|")
    with Registry(url) as registry:
        for stages in (20, 200):
            digest = many_runs.digest(stages - 1)
            edges, calls = len(registry.lineage(digest, "in")), []
            for _ in range(REPETITIONS * CALLS):
                start = time.perf_counter()
                registry.lineage(digest, "in")
                calls.append(1000 * (time.perf_counter() - start))
            print(f"| {stages} stages | {edges} | {percentiles(calls)} |", flush=True)


if __name__ == "__main__":
    main()

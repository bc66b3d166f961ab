"""Seconds until a page of the dashboard has drawn itself in a real browser, with many runs in the
registry and many rows in an artifact, and the memory that its server takes.

A page counts as drawn when its rows are there. The server has its imports, as it has shown another
page. The first visit of an artifact's rows reads through the whole file.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from playwright.sync_api import Page, sync_playwright
from pydantic import BaseModel
from tests.benchmarks import many_runs
from tests.benchmarks.process_tree import cpu_seconds, mib
from tests.benchmarks.turns import spread
from tests.conftest import start_postgres
from tests.dashboard.dashboard_server import free_port, running

from caravan.data.io import ROWS as ROWS_FILE
from caravan.data.io import write_json
from caravan.data.records import Conversation, Message, Pair
from caravan.registry import Registry, upgrade
from caravan.settings import Settings
from caravan.store import open_store
from caravan_dashboard.launch import command

RUNS, ROWS, VISITS = 10_000, 100_000, 5
WORDS = "the caravan carries salt over the pass to the market of the town before the winter comes "


def main() -> None:
    with tempfile.TemporaryDirectory() as name, postgres() as url:
        home = Path(name)
        many_runs.fill(url, RUNS)
        run_id = write_rows(home, url)
        settings = {"CARAVAN_HOME": str(home), "CARAVAN_REGISTRY_URL": url}
        port = free_port()
        with running(command, home, port, **settings) as address, browser() as page:
            server = server_on(port)
            pages = {
                "Runs, 10,000": ("", "a[href*='pocket-']"),
                "Runs, failed ones": ("?state=failed", "a[href*='pocket-']"),
                "Runs, best DPO first": ("?order=Best+dpo", "a[href*='pocket-']"),
                "Runs, dpo.beta=2": ("?q=dpo.beta%3D2", "a[href*='pocket-']"),
                "Rows, 100,000": (f"data?run={run_id}&view=Rows", "text=of 100,000 rows"),
                "Rows, page 9,000": (f"data?run={run_id}&view=Rows&page=9000", "text=of 100,000"),
                "Pairs, 100,000": (f"pairs?run={run_id}", "text=of 100,000 pairs"),
            }
            visit(page, f"{address}/launch", "text=Recipe")
            print("| page | first visit, s | next visits, s | CPU-s of the server | server, MiB |")
            print("|---|---|---|---|---|")
            for title, (path, wanted) in pages.items():
                first = visit(page, f"{address}/{path}", wanted)
                before = cpu_seconds(server)
                found = [visit(page, f"{address}/{path}", wanted) for _ in range(VISITS)]
                cpu = (cpu_seconds(server) - before) / VISITS
                print(
                    f"| {title} | {first:.2f} | {spread(found, 2)} | {cpu:.2f} "
                    f"| {mib(server, 'VmRSS'):.0f} |",
                    flush=True,
                )
            print(f"\nat most {mib(server, 'VmHWM'):.0f} MiB")


def visit(page: Page, address: str, wanted: str) -> float:
    page.goto("about:blank")
    start = time.perf_counter()
    page.goto(address)
    page.wait_for_selector(wanted)
    return time.perf_counter() - start


def server_on(port: int) -> int:
    wanted = f"--server.port\0{port}\0".encode()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        if wanted in path.read_bytes():
            return int(path.parent.name)
    raise AssertionError("no server")


@contextmanager
def postgres() -> Iterator[str]:
    directory = Path(tempfile.mkdtemp(prefix="caravan-postgres-"))
    server = start_postgres(directory / "data")
    try:
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            connection.execute("CREATE DATABASE caravan")
        url = server.get_uri().replace("/postgres?", "/caravan?")
        upgrade(url)
        yield url
    finally:
        server.cleanup()
        shutil.rmtree(directory)


@contextmanager
def browser() -> Iterator[Page]:
    with sync_playwright() as playwright:
        found = shutil.which("chromium") or shutil.which("chromium-browser")
        with playwright.chromium.launch(executable_path=found, args=["--no-sandbox"]) as started:
            page = started.new_page(viewport={"width": 1360, "height": 1000})
            page.set_default_timeout(300_000)
            yield page


def write_rows(home: Path, url: str) -> str:
    """A run with a dataset and pairs, each of so many rows of about a kilobyte."""
    settings = Settings(home=home, registry_url=url)
    store = open_store(settings=settings)
    with Registry(url) as registry:
        run_id = registry.create_run({}, name="rows", seed=1, recipe_digest="d" * 64)
        for node, name, row in (("mix", "dataset", conversation), ("pair", "pairs", pair)):
            directory = home / node
            write_lines(directory / ROWS_FILE, (row(number) for number in range(ROWS)))
            artifact = store.put(directory, name)
            opened = registry.open_stage_run(run_id, node, node, node * 16)
            registry.start_stage_run(opened.id)
            outputs = {name: (artifact, store.uri(artifact.digest))}
            if node == "mix":  # or the page says that there is no data
                write_json(home / "report" / "mix.json", {"rows": ROWS})
                report = store.put(home / "report", "report")
                outputs["report"] = (report, store.uri(report.digest))
            registry.succeed_stage_run(opened.id, outputs)
    return run_id


def write_lines(path: Path, rows: Iterable[BaseModel]) -> None:
    path.parent.mkdir()
    with path.open("w") as file:
        file.writelines(row.model_dump_json(exclude_none=True) + "\n" for row in rows)


def conversation(number: int) -> Conversation:
    return Conversation(
        id=f"source-{number % 12}/{number}", source=f"source-{number % 12}", license="Apache-2.0",
        skill=("math", "chat", "code")[number % 3],
        messages=(Message(role="user", content=f"{number}: {4 * WORDS}"),
                  Message(role="assistant", content=7 * WORDS)),
    )  # fmt: skip


def pair(number: int) -> Pair:
    return Pair(
        id=f"source-{number % 12}/{number}", source=f"source-{number % 12}", skill="chat",
        prompt=(Message(role="user", content=f"{number}: {2 * WORDS}"),),
        chosen=5 * WORDS, rejected=(3 + number % 4) * WORDS,
        chosen_model=f"model-{number % 7}", rejected_model=f"model-{number % 5}",
        chosen_rating=4.0, rejected_rating=1.0 + number % 3,
    )  # fmt: skip


if __name__ == "__main__":
    main()

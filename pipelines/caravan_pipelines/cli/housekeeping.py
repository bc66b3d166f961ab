"""Delete runs, remove what no run needs any more, and show how much room runs take."""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack
from dataclasses import asdict
from datetime import timedelta

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from caravan.operations.housekeeping import Garbage, find_garbage, freed_bytes, only_of, usages
from caravan.registry import open_registry
from caravan.settings import load_settings
from caravan.store.sizes import size
from caravan_pipelines.cli.common import print_json
from caravan_pipelines.cli.tables import print_table, run_column, runs_table
from caravan_pipelines.launch.local import refuse_executed, run_dir
from caravan_pipelines.launch.lock import acquire


def delete(names: list[str], *, sure: bool) -> None:
    settings = load_settings()
    with open_registry(settings) as registry, ExitStack() as locks:
        runs = list({run.id: run for run in map(registry.get_run, names)}.values())
        alone = only_of(registry, (run.id for run in runs))
        freed = freed_bytes(registry, alone)
        rated = {digest: n for digest, n in registry.rated_pairs().items() if digest in alone}
        if not sure:
            print_table(Console(), runs_table(runs, registry.scores(*(run.id for run in runs))))
            print(f"{size(freed)} of artifacts are of no other run.")
            typer.confirm("Delete, for good?", abort=True)
        directories = [run_dir(settings, run.id) for run in runs]
        for run, directory in zip(runs, directories, strict=True):
            if directory.is_dir():  # the lock keeps everybody from resuming the run
                refuse_executed(run.id, settings)
                locks.callback(os.close, acquire(directory / "lock"))
        registry.delete_runs(run.id for run in runs)
        for directory in directories:
            shutil.rmtree(directory, ignore_errors=True)
    for run in runs:
        print(f"deleted {run.id}")
    for digest, count in rated.items():
        print(
            f"{count:,} ratings by people stay, and the pairs with them: "
            f"caravan data ratings {digest[:12]}"
        )
    print(f"{size(freed)} of artifacts are no run's any more; free the room with: caravan gc")


def gc(
    *, dry_run: bool, hours: float, unknown: bool, candidates: bool, rated: bool, as_json: bool
) -> None:
    settings = load_settings()
    with open_registry(settings) as registry:
        found = find_garbage(
            settings, registry, older_than=timedelta(hours=hours), unknown=unknown,
            candidates=candidates, rated=rated,
        )  # fmt: skip
        gone = found.garbage if dry_run else [item for item in found.garbage if item.remove()]
    left = sum(item.size_bytes for item in found.unknown)
    if as_json:
        rows = [{"kind": g.kind, "name": g.name, "size_bytes": g.size_bytes} for g in gone]
        print_json(rows)
        return
    if gone:
        print_table(Console(), _garbage_table(gone))
    freed = size(sum(item.size_bytes for item in gone))
    print(f"{freed} {'would be' if dry_run else 'is'} freed")
    if found.unknown:
        print(
            f"{size(left)} of artifacts that this registry has never known are left: another "
            "registry's, or of a stage that was killed; if no other registry uses the store, "
            "caravan gc --unknown removes them too"
        )


def du(*, as_json: bool) -> None:
    settings = load_settings()
    with open_registry(settings) as registry:
        found = usages(settings, registry)
        referred = registry.references()
        rated = registry.rated_pairs()
        artifacts = [a for a in registry.artifacts(limit=None) if a.uri]
    if as_json:
        print_json([asdict(usage) for usage in found])
        return
    table = Table(
        run_column(usage.run_id for usage in found),
        *(Column(name, justify="right") for name in ("artifacts", "no other run's", "unfinished")),
        box=SIMPLE_HEAD,
    )
    for usage in found:
        cells = (usage.artifact_bytes, usage.own_bytes, usage.work_bytes)
        table.add_row(Text(usage.run_id), *map(size, cells))
    print_table(Console(), table)
    total = sum(artifact.size_bytes for artifact in artifacts)
    unused = sum(a.size_bytes for a in artifacts if a.digest not in {*referred, *rated})
    print(f"{size(total)} of artifacts in all, of which {size(unused)} are no run's (caravan gc)")


def _garbage_table(garbage: list[Garbage]) -> Table:
    table = Table("what", "name", Column("size", justify="right"), box=SIMPLE_HEAD)
    for item in garbage:
        table.add_row(item.kind, item.name[:12], size(item.size_bytes))
    return table

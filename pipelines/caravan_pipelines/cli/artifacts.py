"""Show artifacts and copy them out of the store."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from caravan.errors import CaravanError
from caravan.registry import ArtifactRow, Registry, open_registry
from caravan.settings import load_settings
from caravan.stages.candidates import selected, selection_of
from caravan.store import open_store
from caravan.store.copies import copy_out
from caravan_pipelines.cli.common import print_json
from caravan_pipelines.cli.tables import columns, print_table, run_column

MODEL = "model"
"""The result of a training stage that selects from nothing, and of a selection."""


def show(reference: str, *, as_json: bool) -> None:
    settings = load_settings()
    with open_registry(settings) as registry:
        artifact = find(reference, registry)
        made_from = registry.lineage(artifact.digest, "in")
        made_into = registry.lineage(artifact.digest, "out")
    manifest = open_store(settings.resolved_store_url, settings).manifest(artifact.digest)
    if as_json:
        data = {
            "digest": artifact.digest,
            "kind": artifact.kind,
            "size_bytes": artifact.size_bytes,
            "uri": artifact.uri,
            "metadata": dict(artifact.metadata),
            "files": [{"path": f.path, "size": f.size, "sha256": f.sha256} for f in manifest.files],
            "made_from": sorted({e.digest for e in made_from} - {artifact.digest}),
            "made_into": sorted({e.digest for e in made_into} - {artifact.digest}),
        }
        print_json(data)
        return
    console = Console()
    console.print(
        Text(f"{artifact.kind} {artifact.digest}\n{artifact.uri}, {artifact.size_bytes:,} bytes"),
        soft_wrap=True,
    )
    for name, value in artifact.metadata.items():
        console.print(Text(f"{name} {value}"), soft_wrap=True)
    files = Table(*columns("file", "bytes", "sha256"))
    for file in manifest.files:
        files.add_row(Text(file.path), f"{file.size:,}", file.sha256[:12])
    print_table(console, files)
    runs = run_column(edge.run_id for edge in [*made_from, *made_into])
    lineage = Table(*columns("lineage"), runs, *columns("stage", "artifact"))
    for title, edges in (("made from", made_from), ("made into", made_into)):
        for edge in edges:
            lineage.add_row(
                title, Text(edge.run_id), Text(f"{edge.node} {edge.direction}"),
                Text(f"{edge.name} {edge.digest[:12]}"),
            )  # fmt: skip
    print_table(console, lineage)


def get(reference: str, to: Path) -> None:
    settings = load_settings()
    if os.path.lexists(to):
        raise CaravanError(f"{to} exists; name a directory that does not")
    with open_registry(settings) as registry:
        artifact = find(reference, registry)
    source = open_store(settings.resolved_store_url, settings).fetch(artifact.digest)
    copy_out(source, to)
    print(to)


def find(reference: str, registry: Registry) -> ArtifactRow:
    """The artifact of a digest (or its beginning), or of `RUN:STAGE/OUTPUT`. `RUN:sft/model` of a
    run that has selected SFT's policy is the one that it took, which a warning says.

    Raises:
        CaravanError: there is none, there are several, or it was removed.
    """
    found = registry.artifact(_digest(reference, registry))
    if not found.uri:
        raise CaravanError(
            f"{reference} was removed by `caravan gc --candidates`: it is a policy that was not "
            "selected; the one that was is the run's select-sft/model, select-dpo/model or "
            "select/model (of rlvr)"
        )
    return found


def _digest(reference: str, registry: Registry) -> str:
    run_id, colon, output = reference.partition(":")
    if not colon or "/" not in output:
        return reference
    node, _, name = output.rpartition("/")
    run = registry.get_run(run_id)
    stages = registry.stage_runs(run.id)
    made = {
        f"{stage.node}/{key}": digest for stage in stages for key, digest in stage.outputs.items()
    }
    selection = selection_of(node)
    taken = f"{selection}/{MODEL}"
    if name == MODEL and output not in made and taken in made:
        chosen = next(selected(stage) for stage in stages if stage.node == selection)
        print(f"warning: run {run.id} has {chosen} of {node}: taking {taken}", file=sys.stderr)
        return made[taken]
    if f"{node}/{name}" not in made:
        known = ", ".join(made) or "none yet"
        raise CaravanError(f"run {run.id} has no artifact {output!r} (it has: {known})")
    return made[f"{node}/{name}"]

"""What the registry and the store know of a model: the stages before it, its data, its scores."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from caravan.errors import CaravanError
from caravan.evals.models import model_of
from caravan.registry import Registry, RunRow, ScoreRow, StageRunRow
from caravan.store import Store


@dataclass(frozen=True)
class DataSource:
    """One source that went into the model."""

    name: str
    license: str
    provenance: str
    skill: str
    kept: int
    """Rows after curation."""
    mixed: int
    """Rows of the SFT mix; a row that it repeats counts each time."""
    trained: int | None
    """Of the mix, rows that SFT trained on; None where it has not said."""


@dataclass(frozen=True)
class PairsSource:
    """One source of preference pairs that existed before the run."""

    name: str
    license: str
    provenance: str
    skill: str
    pairs: int
    """Those that stayed."""


@dataclass(frozen=True)
class ModelFacts:
    digest: str
    run: RunRow
    stage: StageRunRow
    """The last stage run of `run` that gave the model: a selection gives one that was given to it
    by the stage that it selects from."""
    before: tuple[StageRunRow, ...]
    """The stage runs that the model was made by, itself the last, in the order of the run."""
    models: tuple[StageRunRow, ...] = ()
    """Those of them that gave a model."""
    sources: tuple[DataSource, ...] = ()
    pairs: tuple[PairsSource, ...] = ()
    scores: tuple[ScoreRow, ...] = ()
    base: str = ""
    """The base model: a name or a directory; empty where the run pretrained its own."""
    revision: str | None = None

    @property
    def licenses(self) -> tuple[str, ...]:
        of_rows = {source.license for source in self.sources}
        return tuple(sorted(of_rows | {source.license for source in self.pairs}))

    def settings(self, stage: StageRunRow) -> Mapping[str, Any]:
        """The part of the recipe that a stage run had."""
        name = {"base": "base_model"}.get(stage.stage, stage.stage)
        section = self.run.recipe.get(name)
        return section if isinstance(section, Mapping) else {}


@dataclass
class _Reports:
    """JSON files of a run's reports, read from the store."""

    store: Store
    outputs: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def read(self, node: str, output: str, file: str) -> Mapping[str, Any]:
        digest = self.outputs.get(node, {}).get(output)
        if digest is None:
            return {}
        path = Path(self.store.fetch(digest)) / file
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def model_facts(digest: str, registry: Registry, store: Store, run_id: str = "") -> ModelFacts:
    """All that is known of the model with this digest.

    Args:
        run_id: the run that is meant, where several have the model; empty takes the first.

    Raises:
        CaravanError: it is no model, or no stage run is known to have made it.
    """
    artifact = registry.artifact(digest)
    if artifact.kind != "model":
        raise CaravanError(f"{digest[:12]} is of the kind {artifact.kind!r}, not a model")
    made = [
        edge
        for edge in registry.lineage(digest, "in", run_id=run_id or None)
        if edge.direction == "out"
    ]
    own = [edge for edge in made if edge.digest == digest]
    if not own:
        raise CaravanError(f"no stage run is known that made {digest[:12]}")
    run = registry.get_run(run_id or own[0].run_id)
    stages = registry.stage_runs(run.id)
    nodes = {edge.node for edge in made}
    gave = {edge.node for edge in own}
    *_, stage = (s for s in stages if digest in s.outputs.values() and s.node in gave)
    reports = _Reports(store, {s.node: s.outputs for s in stages if s.node in nodes})
    asked = {s.node for s in stages if model_of(s.node) and s.inputs.get("model") == digest}
    scores = [s for s in registry.scores(run.id) if s.node in asked]
    before = tuple(s for s in stages if s.node in nodes)
    gave_models = {edge.node for edge in made if edge.kind == "model"}
    base = run.recipe.get("base_model", {})
    return ModelFacts(
        digest=digest, run=run, stage=stage,
        before=before, models=tuple(s for s in before if s.node in gave_models),
        sources=_sources(run.recipe, reports, trained_by_source(before)),
        pairs=tuple(pairs for stage in before for pairs in _pairs(run.recipe, stage)),
        scores=tuple(scores),
        base=base.get("model_name_or_path", ""), revision=base.get("revision"),
    )  # fmt: skip


def trained_by_source(stages: Iterable[StageRunRow]) -> dict[str, int] | None:
    """Rows that SFT trained on; None where no stage run says it."""
    metrics = next((stage.metrics for stage in stages if stage.stage == "sft"), {})
    of = "source/"
    found = {k.removeprefix(of): int(n) for k, n in metrics.items() if k.startswith(of)}
    return found or None


def _pairs(recipe: Mapping[str, Any], stage: StageRunRow) -> Iterator[PairsSource]:
    """Whose pairs a stage run has read."""
    if stage.stage == "read_pairs":
        for s in recipe["pair"]["sources"]:
            kept = int(stage.metrics.get(f"pairs/{s['name']}", 0))
            yield PairsSource(s["name"], s["license"], s["provenance"], s["skill"], kept)


def _sources(
    recipe: Mapping[str, Any], reports: _Reports, trained: Mapping[str, int] | None
) -> tuple[DataSource, ...]:
    card = reports.read("curate", "card", "card.json")
    mixed = reports.read("mix", "report", "mix.json").get("by_source", {})

    def used(name: str) -> tuple[int, int | None]:
        return mixed.get(name, 0), None if trained is None else trained.get(name, 0)

    sources = [
        DataSource(
            s["name"], s["license"], s["provenance"], s["skill"], s["kept"], *used(s["name"])
        )
        for s in card.get("sources", ())
    ]  # fmt: skip
    if "synthesize" in reports.outputs:
        for task in (recipe.get("synthesize") or {}).get("tasks", ()):
            writer, answerer = task["prompt_engine"], task["response_engine"]
            sources.append(
                DataSource(
                    task["name"], task["license"],
                    f"Synthesised: prompts by {writer}, responses by {answerer}.", task["skill"],
                    task["count"], *used(task["name"]),
                )
            )  # fmt: skip
    return tuple(sources)

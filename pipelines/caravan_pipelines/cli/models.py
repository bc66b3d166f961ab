"""Merge models, print their cards, export them."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import NamedTuple

from caravan.errors import CaravanError
from caravan.registry import ArtifactRow, Registry, open_registry
from caravan.release.export import Dtype, card_of, export_model, template_of
from caravan.release.facts import model_facts
from caravan.settings import load_settings
from caravan.store import open_store
from caravan_pipelines.cli.artifacts import find

WEIGHT = re.compile(r"(?P<model>.+):(?P<weight>[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?)")


def export(reference: str, directory: Path, dtype: Dtype | None) -> None:
    settings = load_settings()
    store = open_store(settings.resolved_store_url, settings)
    with open_registry(settings) as registry:
        digest = find(reference, registry).digest
        run_id = run_of(reference, registry)
        export_model(digest, directory, registry, store, run_id=run_id, dtype=dtype)
    print(directory)


def card(reference: str) -> None:
    settings = load_settings()
    store = open_store(settings.resolved_store_url, settings)
    with open_registry(settings) as registry:
        digest = find(reference, registry).digest
        facts = model_facts(digest, registry, store, run_of(reference, registry))
        print(card_of(facts, template_of(store.fetch(digest))), end="")


class Ingredient(NamedTuple):
    name: str
    weight: float


def parse(text: str) -> Ingredient:
    """`latest:sft/model:0.5` is a model and its weight; without a number the weight is 1."""
    found = WEIGHT.fullmatch(text)
    return Ingredient(found["model"], float(found["weight"])) if found else Ingredient(text, 1.0)


def merge(texts: list[str], out: Path | None, *, as_given: bool) -> None:
    from caravan.training.merging import normalised

    ingredients = [parse(text) for text in texts]
    if len(ingredients) < 2:
        raise CaravanError("a merge takes two models or more")
    weights = [ingredient.weight for ingredient in ingredients]
    if not as_given:
        weights = normalised(weights)
    names = [ingredient.name for ingredient in ingredients]
    with open_registry(load_settings()) as registry:
        if out is not None:
            _merge_to_directory(names, weights, out, registry)
        else:
            _merge_to_artifact(names, weights, registry)


def _merge_to_directory(
    names: list[str], weights: list[float], out: Path, registry: Registry
) -> None:
    from caravan.training.merging import Ingredient as Part
    from caravan.training.merging import merge_models

    if out.exists():
        raise CaravanError(f"{out} exists; name a directory that does not")
    settings = load_settings()
    store = open_store(settings.resolved_store_url, settings)
    parts = []
    for name, weight in zip(names, weights, strict=True):
        is_directory = Path(name).is_dir()
        path = Path(name) if is_directory else store.fetch(find(name, registry).digest)
        parts.append(Part(path, weight))
    merge_models(parts, out)
    print(out)


def _merge_to_artifact(names: list[str], weights: list[float], registry: Registry) -> None:
    from caravan.stages.execute import execute
    from caravan.stages.merge import MergeConfig

    for name in names:
        if Path(name).is_dir():
            raise CaravanError(
                f"{name} is a directory, which no run has made: write the merge with --out DIR"
            )
    inputs = {f"model-{i}": find(name, registry).digest for i, name in enumerate(names)}
    settings = load_settings()
    store = open_store(settings.resolved_store_url, settings)
    run_id = run_of(names[0], registry)
    if not run_id:
        run_id = model_facts(inputs["model-0"], registry, store).run.id
    described = repr(([*inputs.values()], weights))
    node = f"merge-{hashlib.sha256(described.encode()).hexdigest()[:8]}"
    outputs = execute(node, "merge", MergeConfig(weights=tuple(weights)), inputs, run_id, settings)
    print(f"{run_id}:{node}/model {outputs['model']}")


def model_path(reference: str) -> Path:
    """Where the model of a reference lies, or the directory of that name.

    Raises:
        CaravanError: there is neither, or it is no model.
    """
    if Path(reference).is_dir():
        return Path(reference)
    settings = load_settings()
    with open_registry(settings) as registry:
        digest = find_model(reference, registry).digest
    return open_store(settings.resolved_store_url, settings).fetch(digest)


def find_model(reference: str, registry: Registry) -> ArtifactRow:
    """
    Raises:
        CaravanError: there is no such artifact, or it is no model.
    """
    artifact = find(reference, registry)
    if artifact.kind != "model":
        raise CaravanError(f"artifact {artifact.digest[:12]} is a {artifact.kind}, not a model")
    return artifact


def run_of(reference: str, registry: Registry) -> str:
    """The run in `RUN:STAGE/OUTPUT`; empty for a digest, which may be of several."""
    run, colon, output = reference.partition(":")
    return registry.get_run(run).id if colon and "/" in output else ""

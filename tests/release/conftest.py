"""A finished run as the registry and the store keep it, with tiny models that were not trained."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from caravan.recipe import PretrainedBase, Recipe
from caravan.recipe.io import load_recipe, recipe_digest
from caravan.registry import Registry
from caravan.registry.states import State
from caravan.settings import Settings
from caravan.stages.context import Score
from caravan.store import Store, open_store
from caravan.training.bpe import train_tokenizer
from caravan.training.models import save_model
from caravan.training.pretrain import new_llama
from caravan_command import MINI, command_here

TEXTS = [f"The camel carries {i} bags of salt to the town of Orsa." for i in range(40)]
SHAPE = PretrainedBase(
    vocab_size=320, hidden_size=64, intermediate_size=64, num_hidden_layers=2,
    num_attention_heads=2, max_position_embeddings=128,
)  # fmt: skip
SCORE = Score("math", "accuracy", 0.645, 0.612, 0.678, 1500)


@dataclass
class Finished:
    settings: Settings
    registry: Registry
    store: Store
    recipe: Recipe
    run_id: str

    def stage(self, node: str, inputs: dict[str, str], outputs: dict[str, Path], **more) -> None:
        """Record a stage run that wrote these directories."""
        stage = node.split("-")[0] if node.startswith(("evaluate", "select")) else node
        opened = self.registry.open_stage_run(self.run_id, node, stage, f"key of {node}")
        self.registry.start_stage_run(opened.id, inputs)
        stored = {}
        for name, directory in outputs.items():
            kind = "model" if name == "model" or name.startswith("step-") else "report"
            artifact = self.store.put(directory, kind)
            stored[name] = (artifact, self.store.uri(artifact.digest))
        self.registry.succeed_stage_run(opened.id, stored, **more)

    def output(self, node: str, name: str = "model") -> str:
        stages = {stage.node: stage for stage in self.registry.stage_runs(self.run_id)}
        return stages[node].outputs[name]


@pytest.fixture
def finished(tmp_path: Path) -> Iterator[Finished]:
    settings = Settings(home=tmp_path / "home")
    recipe = load_recipe(MINI)
    with Registry(settings.resolved_registry_url) as registry:
        store = open_store(settings.resolved_store_url, settings)
        run_id = registry.create_run(
            recipe.model_dump(mode="json"), name=recipe.name, seed=recipe.seed,
            recipe_digest=recipe_digest(recipe), recipe_dir=MINI.parent,
        )  # fmt: skip
        made = Finished(settings, registry, store, recipe, run_id)
        _fill(made, tmp_path)
        registry.update_run_state(run_id, State.SUCCEEDED)
        yield made


@pytest.fixture
def caravan(
    finished: Finished, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    return command_here(finished.settings, monkeypatch, capsys)


@pytest.fixture
def exported(caravan: Callable[..., str], tmp_path: Path) -> Path:
    caravan("model", "export", "latest:dpo/model", str(tmp_path / "exported"))
    return tmp_path / "exported"


def _fill(made: Finished, tmp_path: Path) -> None:
    models = _models(tmp_path)
    sources = [
        {"name": s.name, "license": s.license, "provenance": s.provenance, "skill": s.skill,
         "kept": 100 + i}
        for i, s in enumerate(made.recipe.curate.sources)
    ]  # fmt: skip
    card = _json(tmp_path / "card", "card.json", {"sources": sources})
    mix = _json(tmp_path / "mix", "mix.json", {"by_source": {"notes": 77, "persona-math": 40}})
    rows = _json(tmp_path / "rows", "rows.json", {})
    mixed = _json(tmp_path / "mixed", "rows.json", {"mixed": 1})
    made.stage("base", {}, {"model": models["base"]})
    made.stage("curate", {}, {"dataset": rows, "card": card})
    made.stage("synthesize", {}, {"dataset": _json(tmp_path / "syn", "rows.json", {"syn": 1})})
    datasets = {n: made.output(n, "dataset") for n in ("curate", "synthesize")}
    made.stage("decontaminate", datasets, {"dataset": _json(tmp_path / "c", "r.json", {"c": 1})})
    clean = made.output("decontaminate", "dataset")
    made.stage("mix", {"dataset": clean}, {"dataset": mixed, "report": mix})
    inputs = {"model": made.output("base"), "dataset": made.output("mix", "dataset")}
    trained = {"rows": 70, "dropped_rows": 47, "source/notes": 70}
    made.stage("sft", inputs, {"model": models["sft"]}, metrics=trained)
    made.stage("dpo", {"model": made.output("sft")}, {"model": models["dpo"]})
    for node in ("sft", "dpo"):
        scored = _json(tmp_path / f"e-{node}", "scores.json", {"of": node})
        scores = [SCORE] if node == "dpo" else []
        made.stage(f"evaluate-{node}", {"model": made.output(node)}, {"evaluation": scored},
                   scores=scores)  # fmt: skip


def _models(tmp_path: Path) -> dict[str, Path]:
    tokenizer = train_tokenizer(TEXTS, vocab_size=320, model_max_length=64)
    made = {}
    for seed, name in enumerate(("base", "sft", "dpo")):
        torch.manual_seed(seed)
        made[name] = tmp_path / "models" / name
        save_model(new_llama(SHAPE, tokenizer), tokenizer, made[name])
    return made


def _json(directory: Path, name: str, content: object) -> Path:
    directory.mkdir(parents=True)
    (directory / name).write_text(json.dumps(content))
    return directory

"""A complete small run, written through the real registry and store, for the pages to show."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel
from sample_rows import (
    ACCURACY,
    EVIL,
    INSTANCES,
    SOURCES,
    conversation,
    instance,
    judged,
    pairs,
    ratings,
    rollouts,
    unrated,
)

from caravan.data.io import ROWS, write_json, write_rows, write_text
from caravan.evals.scoring import ScoredCompletion
from caravan.recipe import Recipe
from caravan.recipe.io import parse_recipe, recipe_digest
from caravan.registry import Registry, State
from caravan.settings import Settings
from caravan.stages.context import Score
from caravan.stages.decontaminate import Evidence
from caravan.store import Artifact, Store, open_store

RECIPE = """
name: sample
description: A small run for the tests of the dashboard
seed: 17
base_model: {kind: pretrained}
engines:
  terse: {kind: program, program: terse}
curate:
  sources:
    - {name: word-problems, origin: {kind: generated, generator: math-book, count: 40},
       license: Apache-2.0, skill: math, provenance: written for the tests}
    - {name: constraints, origin: {kind: generated, generator: math-book, count: 30},
       license: Apache-2.0, skill: precise-if}
    - {name: small-talk, origin: {kind: generated, generator: math-book, count: 20},
       license: ODC-BY-1.0, skill: chat}
sft: {sequences_per_step: 8}
sample_prompts: {used_in_sft: 10, unused_in_sft: 10}
respond: {pool: [{name: terse, engine: terse}, {name: sft, artifact: sft}]}
judge: {judge: {kind: program}}
pair: {}
dpo: {}
reward_model: {}
rlvr: {}
evaluate:
  tasks:
    - {name: word-problems, task: gsm8k}
    - {name: constraints, task: ifeval}
    - {name: small-talk, task: alpaca_eval}
    - {name: unseen-problems, task: gsm8k, suite: unseen}
"""


class SampleRun:
    """Writes one run: each method is a stage, and `finish` closes it."""

    def __init__(self, home: Path, scratch: Path, *, seed: int = 17, tags: Iterable[str] = ()):
        self.settings = Settings(home=home)
        self.registry = Registry(self.settings.resolved_registry_url)
        self.store: Store = open_store(settings=self.settings)
        self.recipe: Recipe = parse_recipe(RECIPE).derive(seed=seed)
        self.scratch = scratch
        self.random = random.Random(seed)
        self.outputs: dict[str, dict[str, tuple[Artifact, str]]] = {}
        self.create(tags)

    def create(self, tags: Iterable[str] = ()) -> str:
        """Begin a run of the recipe as it is now."""
        self.run_id = self.registry.create_run(
            self.recipe.model_dump(mode="json"),
            name=self.recipe.name,
            seed=self.recipe.seed,
            recipe_digest=recipe_digest(self.recipe),
            owner="ann",
            tags=tags,
        )
        self.registry.update_run_state(self.run_id, State.RUNNING)
        return self.run_id

    def put(self, kind: str, files: Mapping[str, object]) -> tuple[Artifact, str]:
        """Publish a directory: lists of records become rows, other values JSON or text."""
        directory = self.scratch / f"{self.run_id}-{self.random.random()}"
        for name, content in files.items():
            if isinstance(content, str):
                write_text(directory / name, content)
            elif isinstance(content, list) and all(isinstance(c, BaseModel) for c in content):
                write_rows(directory / name, content)
            elif isinstance(content, list):
                write_text(directory / name, "".join(json.dumps(row) + "\n" for row in content))
            else:
                write_json(directory / name, content)
        artifact = self.store.put(directory, kind)
        return artifact, self.store.uri(artifact.digest)

    def open(self, node: str, reads: Iterable[str] = ()) -> int:
        stage = node.partition("-")[0] if node.startswith(("evaluate", "respond")) else node
        opened = self.registry.open_stage_run(
            self.run_id, node, stage.replace("-", "_"), f"{self.run_id}/{node}"
        )
        inputs = {}
        for source in reads:
            for name, (artifact, _) in self.outputs[source].items():
                inputs[f"{source}-{name}"] = artifact.digest
        self.registry.start_stage_run(opened.id, inputs)
        return opened.id

    def stage(
        self,
        node: str,
        outputs: dict[str, tuple[Artifact, str]],
        reads: Iterable[str] = (),
        *,
        scores: Iterable[Score] = (),
        series: Mapping[str, Callable[[int], float]] | None = None,
        metrics: Mapping[str, float] = {},
    ) -> None:
        stage_id = self.open(node, reads)
        at = datetime.now(UTC)
        points = [
            (step, name, value(step), at)
            for step in range(1, 61)
            for name, value in (series or {}).items()
        ]
        self.registry.log_points(stage_id, points)
        self.outputs[node] = outputs
        self.registry.succeed_stage_run(stage_id, outputs, scores=tuple(scores), metrics=metrics)

    # --- stages -----------------------------------------------------------------------------

    def data(self) -> None:
        rows = [conversation(s, i) for s in SOURCES for i in range(40 if s != "small-talk" else 20)]
        card = {
            "available": 118,
            "kept": len(rows),
            "dropped": {"exact duplicate": 12, "near duplicate": 6},
            "by_skill": {"math": 40, "precise-if": 40, "chat": 20},
            "by_license": {"Apache-2.0": 80, "ODC-BY-1.0": 20},
            "sources": [
                {
                    "name": s,
                    "skill": skill,
                    "license": "ODC-BY-1.0" if s == "small-talk" else "Apache-2.0",
                    "available": 46 if s != "small-talk" else 26,
                    "kept": 40 if s != "small-talk" else 20,
                    "dropped": {"exact duplicate": 4, "near duplicate": 2},
                }
                for s, skill in SOURCES.items()
            ],
        }
        self.stage(
            "curate",
            {
                "dataset": self.put("dataset", {ROWS: rows}),
                "card": self.put("report", {"card.json": card, "card.md": "# Data card\n"}),
            },
        )
        evidence = [
            Evidence(
                row_id=f"word-problems/{i}",
                source="word-problems",
                task="word-problems",
                instance_id=f"word-problems/{i}",
                coverage=0.5 + i / 20,
                matched_text=EVIL if i == 0 else f"ann has {i} apples and gives away some",
            )
            for i in range(6)
        ]
        clean = rows[6:]
        overlap = {
            "ngram_size": 8,
            "max_coverage": 0.5,
            "max_source_overlap": 0.02,
            "instances": dict.fromkeys(ACCURACY, INSTANCES),
            "overlap": {
                "word-problems": {"word-problems": {"instances": 6, "share": 0.05}},
                "constraints": {"constraints": {"instances": 1, "share": 0.008}},
                "small-talk": {},
            },
            "dropped_sources": {},
            "rows": {"word-problems": 40, "constraints": 40, "small-talk": 20},
            "dropped_rows": {"word-problems": 6, "constraints": 0, "small-talk": 0},
        }
        self.stage(
            "decontaminate",
            {
                "dataset": self.put("dataset", {ROWS: clean}),
                "evidence": self.put(
                    "report", {"evidence.jsonl": evidence, "overlap.json": overlap}
                ),
            },
            ["curate"],
        )
        chosen = clean[:80]
        counts = {s: sum(r.source == s for r in chosen) for s in SOURCES}
        mixed = {
            "rows": len(chosen),
            "by_source": counts,
            "by_skill": {SOURCES[s]: n for s, n in counts.items()},
            "by_license": {"Apache-2.0": len(chosen)},
            "available": counts,
            "left_out": [],
            "missing": {},
        }
        self.stage(
            "mix",
            {
                "dataset": self.put("dataset", {ROWS: chosen}),
                "report": self.put("report", {"mix.json": mixed}),
            },
            ["decontaminate"],
        )

    def model(self, node: str, reads: Iterable[str], start: float, end: float) -> None:
        """A training stage: 60 steps of metrics, and a model of one small file."""
        noise = random.Random(node)
        series: dict[str, Callable[[int], float]] = {
            "loss": lambda s: end + (start - end) * math.exp(-s / 15) + noise.gauss(0, 0.02),
            "grad_norm": lambda s: 1 + 0.3 * math.cos(s / 4) + noise.gauss(0, 0.05),
            "learning_rate": lambda s: 5e-4 * (1 - s / 61),
            "tokens_per_second": lambda s: 24000 + noise.gauss(0, 500),
        }
        if node == "rlvr":
            series["reward"] = lambda s: 3 + s / 20 + noise.gauss(0, 0.2)
            series["kl"] = lambda s: 0.002 * s
        files = {"config.json": {"model": node, "run": self.run_id}}
        outputs = {"model": self.put("model", files)}
        if node == "rlvr":
            outputs["rollouts"] = self.put("report", {ROWS: rollouts()})
        metrics = {"rows": 70, "source/word-problems": 30, "source/constraints": 40}
        self.stage(node, outputs, reads, series=series, metrics=metrics if node == "sft" else {})

    def preferences(self) -> None:
        prompts = [conversation(s, i) for s in SOURCES for i in range(8)]
        self.stage(
            "sample-prompts",
            {"prompts": self.put("dataset", {ROWS: prompts})},
            ["decontaminate", "mix"],
        )
        answers = {"text": "stands for completions"}
        for member in ("terse", "sft"):
            reads = ["sample-prompts", *(["sft"] if member == "sft" else [])]
            made = self.put("completions", {"rows.jsonl": [answers | {"model": member}]})
            self.stage(f"respond-{member}", {"completions": made}, reads)
        made = self.put("completions", {ROWS: ratings()})
        self.stage("judge", {"ratings": made}, ["sample-prompts", "respond-terse", "respond-sft"])
        self.stage("pair", {"pairs": self.put("pairs", {ROWS: pairs()})}, ["judge"])

    def own_pairs(self) -> None:
        evidence = self.put("report", {"overlap.json": {}})
        made = {"evidence": evidence, "pairs": self.put("pairs", {ROWS: unrated()})}
        self.stage("pair", made, [])

    def evaluate(self, model: str, reads: str) -> None:
        rows: list[ScoredCompletion] = []
        scores: list[Score] = []
        for task, accuracy in ACCURACY.items():
            draw = random.Random(f"{task}/instances")
            level = accuracy[model]
            values = {}
            for i in range(INSTANCES):
                right = draw.random() < level
                values[f"{task}/{i}"] = float(right)
                rows.append(instance(task, i, right))
            mean = sum(values.values()) / INSTANCES
            half = 1.96 * math.sqrt(mean * (1 - mean) / INSTANCES)
            suite = "unseen" if task.startswith("unseen") else "dev"
            scores.append(
                Score(task, "accuracy", mean, mean - half, mean + half, INSTANCES, suite, values)
            )
        rated, score = judged(model)
        rows += rated
        scores.append(score)
        made = self.put("report", {"instances.jsonl": rows, "scores.json": {"model": model}})
        self.stage(f"evaluate-{model}", {"evaluation": made}, [reads], scores=scores)

    def everything(self) -> None:
        self.model("base", [], 6.5, 1.4)
        self.data()
        self.model("sft", ["base", "mix"], 1.6, 0.5)
        self.preferences()
        self.model("dpo", ["sft", "pair"], 0.69, 0.55)
        self.model("reward-model", ["sft", "pair"], 0.69, 0.4)
        self.model("rlvr", ["dpo", "reward-model", "decontaminate"], 0.1, 0.02)
        for model in ("sft", "base", "rlvr", "dpo"):  # those that run at once end in any order
            self.evaluate(model, model)
        wins = Score("small-talk:dpo>sft", "win_rate", 0.66, 0.6, 0.72, 200)
        page = self.put("report", {"report.html": "<p>report</p>"})
        self.stage(
            "report",
            {"report": page},
            [f"evaluate-{m}" for m in ("base", "sft", "dpo", "rlvr")],
            scores=[wins],
        )

    def finish(self, state: State = State.SUCCEEDED, error: str | None = None) -> str:
        self.registry.update_run_state(self.run_id, state, error=error)
        self.registry.close()
        return self.run_id


def write_runs(home: Path, scratch: Path) -> dict[str, str]:
    """Three runs: one `complete`, one `failed` in DPO with a malicious error, one `running`."""
    failed = SampleRun(home, scratch, seed=18, tags=["=1+1"])
    failed.model("base", [], 6.5, 1.4)
    failed.data()
    failed.model("sft", ["base", "mix"], 1.6, 0.5)
    failed.own_pairs()
    stage = failed.open("dpo")
    sentence = f"rows.jsonl, row 3: {EVIL}; correct or remove it"
    error = f"{sentence}\n\nTraceback (most recent call last):\n  ...\nKeyError: 'the cause'"
    failed.registry.finish_stage_run(stage, State.FAILED, error=error)
    complete = SampleRun(home, scratch, tags=["baseline", "<b>tag</b>"])
    complete.everything()
    complete.registry.add_note(complete.run_id, f"RLVR helps.\n{EVIL}", author="ann")
    running = SampleRun(home, scratch, seed=19)
    running.model("base", [], 6.5, 1.4)
    stage = running.open("curate")
    running.registry.heartbeat(stage, (2, 3), (4, "997 of 1196 rows have no <reply>"))
    return {
        "failed": failed.finish(State.FAILED, "stage dpo failed"),
        "complete": complete.finish(),
        "running": running.finish(State.RUNNING),
    }

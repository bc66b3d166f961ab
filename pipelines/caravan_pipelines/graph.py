"""Which stage runs a recipe has: their names, their stages, their configs.

`pipeline.py` says what each reads from which; this file says what each is. Both the steps of a
running pipeline and everything that draws or checks one start here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast

from caravan.errors import RecipeError
from caravan.evals.models import EVALUATE, MODELS
from caravan.recipe import Config, EngineConfig, EvaluateConfig, Recipe, Resources, RespondConfig
from caravan.stages.candidates import SELECT, selection_of
from caravan.stages.configs import (
    CurateStageConfig,
    DecontaminateStageConfig,
    DPOStageConfig,
    EvaluateStageConfig,
    JudgeStageConfig,
    ReadPairsStageConfig,
    ReferenceStageConfig,
    ReportStageConfig,
    RespondStageConfig,
    RLVRStageConfig,
    SFTStageConfig,
    SynthesizeStageConfig,
)


class StageConfig(Protocol):
    @property
    def resources(self) -> Resources: ...


@dataclass(frozen=True)
class Node:
    """One stage run of the pipeline."""

    name: str
    """Unique in the run: `sft`, `respond-terse`, `evaluate-dpo`."""
    stage: str
    """Module of `caravan.stages`."""
    config: Config
    """Of the type that the stage's `run` takes; has `resources`."""

    @property
    def resources(self) -> Resources:
        """What the stage asks of the machine, or of the cluster."""
        return cast(StageConfig, self.config).resources


def stage_graph(recipe: Recipe) -> tuple[Node, ...]:
    """The nodes of a recipe, in the order in which they start."""
    nodes = [Node("base", "base", recipe.base_model), *_data_nodes(recipe)]
    if recipe.sft:
        nodes.append(Node("sft", "sft", SFTStageConfig.of(recipe.sft)))
        nodes += _selection(recipe, "sft")
    nodes += _pair_nodes(recipe)
    if recipe.dpo:
        if recipe.dpo.loss.needs_reference:
            once = ReferenceStageConfig.of(recipe.dpo)
            nodes.append(Node("reference", "reference", once))
        nodes.append(Node("dpo", "dpo", DPOStageConfig.of(recipe.dpo)))
        nodes += _selection(recipe, "dpo")
    if recipe.reward_model:
        nodes.append(Node("reward-model", "reward_model", recipe.reward_model))
    if recipe.rlvr:
        nodes.append(
            Node("rlvr", "rlvr", RLVRStageConfig.of(recipe.rlvr, verifiers=recipe.verifiers))
        )
        nodes += _selection(recipe, "rlvr")
    return (*nodes, *_evaluation_nodes(recipe))


def _selection(recipe: Recipe, stage: str) -> list[Node]:
    """What selects from the policies of `stage`, where the recipe does."""
    if (select := recipe.selections.get(stage)) is None:
        return []
    assert recipe.evaluate is not None, "select names tasks of evaluate"
    suite = recipe.evaluate.only(select.tasks)
    return [Node(selection_of(stage), SELECT, _asking(recipe, suite))]


def _data_nodes(recipe: Recipe) -> list[Node]:
    if not recipe.curate or not recipe.reads_rows:
        return []
    curate = CurateStageConfig(**recipe.curate.model_dump(), own_verifiers=tuple(recipe.verifiers))
    nodes = [Node("curate", "curate", curate)]
    if recipe.synthesize:
        engines = [t.prompt_engine for t in recipe.synthesize.tasks]
        engines += [t.response_engine for t in recipe.synthesize.tasks]
        config = SynthesizeStageConfig(
            synthesize=recipe.synthesize,
            engines={name: _engine(recipe, name) for name in sorted(set(engines))},
        )
        nodes.append(Node("synthesize", "synthesize", config))
    cleaning = DecontaminateStageConfig(decontaminate=recipe.decontaminate, tasks=recipe.tasks)
    nodes.append(Node("decontaminate", "decontaminate", cleaning))
    if recipe.sft:
        nodes.append(Node("mix", "mix", recipe.mix))
    return nodes


def _pair_nodes(recipe: Recipe) -> list[Node]:
    nodes: list[Node] = []
    if recipe.pair and recipe.pair.sources:
        reading = ReadPairsStageConfig(
            pair=recipe.pair, decontaminate=recipe.decontaminate, tasks=recipe.tasks
        )
        nodes.append(Node("pair", "read_pairs", reading))
    elif recipe.sample_prompts and recipe.respond and recipe.judge and recipe.pair:
        nodes.append(Node("sample-prompts", "sample_prompts", recipe.sample_prompts))
        drawn_from, drawn = _draw(recipe.respond)
        for member in recipe.respond.pool:
            answering = RespondStageConfig(
                member=member,
                engine=_engine(recipe, member.engine) if member.engine else None,
                own_engine="transformers" if member.engine else recipe.respond.engine,
                sampling=member.sampling or recipe.respond.sampling,
                drawn_from=drawn_from,
                drawn=drawn,
                resources=member.resources or recipe.respond.resources,
            )
            nodes.append(Node(f"respond-{member.name}", "respond", answering))
        judge = recipe.judge.judge
        engine = _engine(recipe, judge.engine) if judge.kind == "llm" else None
        nodes += [
            Node("judge", "judge", JudgeStageConfig(judge=recipe.judge, engine=engine)),
            Node("pair", "pair", recipe.pair),
        ]
    return nodes


def _evaluation_nodes(recipe: Recipe) -> list[Node]:
    if not recipe.evaluate:
        return []
    shards = recipe.evaluate.shards
    asked = [_asking(recipe, recipe.evaluate.shard(i)) for i in range(shards)]
    nodes = [
        Node(name, "evaluate", asked[i % shards]) for i, name in enumerate(evaluations(recipe))
    ]
    return [*nodes, Node("report", "report", ReportStageConfig.of(recipe))]


def _asking(recipe: Recipe, suite: EvaluateConfig) -> EvaluateStageConfig:
    """The tasks of `suite`, with who decides about the replies."""
    rater, safety = suite.judge, suite.safety_judge
    return EvaluateStageConfig(
        evaluate=suite,
        engine=_engine(recipe, rater.engine) if rater and rater.kind == "llm" else None,
        safety_engine=_engine(recipe, safety.engine) if safety else None,
        verifiers={
            t.verifier: recipe.verifiers[t.verifier]
            for t in suite.tasks
            if t.verifier in recipe.verifiers
        },
    )


def evaluated_models(recipe: Recipe) -> list[str]:
    """The models that the recipe makes, in the order in which it makes them."""
    made = {"sft": recipe.sft, "dpo": recipe.dpo, "rlvr": recipe.rlvr}
    return [model for model in MODELS if made.get(model, True)]


def evaluations(recipe: Recipe) -> list[str]:
    """Names of the nodes that evaluate: model by model, and of each its shards."""
    if not recipe.evaluate:
        return []
    shards = recipe.evaluate.shards
    parts = [f"-{i}" for i in range(1, shards + 1)] if shards > 1 else [""]
    return [EVALUATE + model + part for model in evaluated_models(recipe) for part in parts]


def find_node(recipe: Recipe, name: str) -> Node:
    """The node called `name`.

    Raises:
        RecipeError: the recipe has no such node.
    """
    for node in stage_graph(recipe):
        if node.name == name:
            return node
    raise RecipeError(f"recipe {recipe.name} has no stage {name!r}")


def _draw(respond: RespondConfig) -> tuple[tuple[str, ...], int]:
    """Of which members how many answer each prompt, beside the run's own models."""
    if respond.models_per_prompt is None:
        return (), 0
    hosted = tuple(member.name for member in respond.pool if member.artifact is None)
    own = len(respond.pool) - len(hosted)
    return hosted, respond.models_per_prompt - own


def _engine(recipe: Recipe, name: str) -> EngineConfig:
    if name not in recipe.engines:
        known = ", ".join(sorted(recipe.engines)) or "none"
        raise RecipeError(f"engine {name!r} is not under `engines` (known: {known})")
    return recipe.engines[name]

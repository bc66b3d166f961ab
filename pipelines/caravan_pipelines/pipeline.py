"""The pipeline of a recipe: which stage reads what from which.

Read top to bottom, it is the recipe. The same function runs on the laptop (`kfp.local`) and
compiles for Kubeflow Pipelines. (KFP reads real annotations, not postponed ones.)
"""

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, Protocol

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from caravan.errors import RecipeError
from caravan.recipe import Recipe, RespondConfig
from caravan.stages.candidates import selection_of
from caravan_pipelines import components as c
from caravan_pipelines.graph import Node, evaluations, stage_graph
from caravan_pipelines.together import PREPARE, RATE, Prepared, chain, fits_one_pod

Step = Callable[..., Any]
MOST_KINDS = 4
"""Kinds of pods in the pool: the lists of completions that `judge` takes."""


class Placement(Protocol):
    """Where the steps of a pipeline run."""

    one_pod: bool
    """Whether short stages run together."""

    @property
    def at_once(self) -> int:
        """Steps of one fan-out at the same time; 0 sets no limit."""

    def place(self, task: Any, nodes: Sequence[Node]) -> None:
        """Ask for what the stages of one task need. The nodes of a fan-out need the same."""

    def kind(self, node: Node) -> object:
        """What must be equal for two nodes to be of one fan-out."""


class Here:
    """All steps on this machine."""

    one_pod = False
    at_once = 0

    def place(self, task: Any, nodes: Sequence[Node]) -> None:
        pass

    def kind(self, node: Node) -> object:
        return None


def build_pipeline(recipe: Recipe, placement: Placement | None = None) -> BaseComponent:
    """The pipeline of `recipe`, with the parameter `run` (a run's id).

    Raises:
        RecipeError: its pool needs more kinds of pods than a pipeline can hold.
    """
    where = placement or Here()
    graph = stage_graph(recipe)
    by_name = {node.name: node for node in graph}
    answers = _answer_with_pool(recipe.respond, by_name, where) if recipe.respond else []
    evaluated = evaluations(recipe)
    evaluate = _evaluate_models(evaluated, by_name, where) if evaluated else None
    prepare_nodes, rate_nodes = chain(graph, PREPARE), chain(graph, RATE)

    @dsl.pipeline(name=recipe.name, description=recipe.description or recipe.name)
    def pipeline(run: str):  # type: ignore[no-untyped-def]  # KFP refuses None
        def step(component: Step, *names: str, **inputs: Any) -> Any:
            task = component(run=run, **inputs)
            where.place(task, [by_name[name] for name in names])
            return task

        def train(component: Step, name: str, **inputs: Any) -> Any:
            """The policy that a stage comes to, or the one that is selected of those it gives."""
            made, selection = step(component, name, **inputs).outputs, selection_of(name)
            if selection not in by_name:
                return made["model"]
            candidates = made["candidates"]
            select = step(c.select, selection, node=selection, candidates=candidates)
            return out(select.set_display_name(selection))

        base = out(step(c.base, "base"))
        data = Prepared()
        if where.one_pod and fits_one_pod(prepare_nodes):
            data = _prepare_in_one(step, prepare_nodes)
        elif prepare_nodes:
            data = _prepare(recipe, step)
        models = {"base": base}
        if recipe.sft:
            models["sft"] = train(c.sft, "sft", model=base, dataset=data.mix)
        start = models.get("sft", base)

        pairs = ""
        if recipe.pair and recipe.pair.sources:
            pairs = out(step(c.pair, "pair"))
        elif recipe.respond:
            completions = {
                key: answer(run=run, prompts=data.prompts, **models).output
                for key, answer in zip(_LISTS, [a for _, a in answers], strict=False)
            }
            members = [name for names, _ in answers for name in names]
            judged = {"prompts": data.prompts, "members": members, **completions}
            if where.one_pod and fits_one_pod(rate_nodes):
                pairs = out(step(c.rate, *RATE, **judged))
            else:
                ratings = out(step(c.judge, "judge", **judged))
                pairs = out(step(c.pair, "pair", prompts=data.prompts, ratings=ratings))
        if recipe.dpo:
            once = {}
            if recipe.dpo.loss.needs_reference:
                scored = step(c.reference, "reference", model=start, pairs=pairs)
                once = {"reference": out(scored)}
            models["dpo"] = train(c.dpo, "dpo", model=start, pairs=pairs, **once)
        reward_model = ""
        if recipe.reward_model:
            reward_model = out(step(c.reward_model, "reward-model", model=start, pairs=pairs))
        if recipe.rlvr:
            policy = models.get("dpo", start)
            rewarding = {"reward_model": reward_model} if recipe.rlvr.reads_reward_model else {}
            models["rlvr"] = train(c.rlvr, "rlvr", policy=policy, dataset=data.dataset, **rewarding)

        if evaluate:
            step(
                c.report,
                "report",
                nodes=evaluated,
                evaluations=evaluate(run=run, **models).output,
                card=data.card,
                evidence=data.evidence,
                mix=data.mix_report,
            )

    return pipeline


def build_sweep(recipe: Recipe, placement: Placement | None = None) -> BaseComponent:
    """The pipeline of several runs whose recipes differ from `recipe` in values only, with the
    parameters `first` and `others` (ids of the runs).

    The first one goes ahead, so that the others find made what they have in common with it.
    """
    member = build_pipeline(recipe, placement)
    at_once = (placement or Here()).at_once

    @dsl.pipeline(name=f"{recipe.name}-sweep")
    def sweep(first: str, others: list[str]):  # type: ignore[no-untyped-def]  # KFP refuses None
        ahead = member(run=first)
        with dsl.ParallelFor(others, parallelism=at_once or None) as run:
            member(run=run).after(ahead)

    return sweep


def out(task: Any) -> Any:
    """The reference that a component returns, beside its metrics."""
    return task.outputs["Output"]


def _prepare(recipe: Recipe, step: Step) -> Prepared:
    curated = step(c.curate, "curate")
    synthesized = {}
    if recipe.synthesize:
        synthesized["synthesized"] = out(step(c.synthesize, "synthesize"))
    clean = step(
        c.decontaminate, "decontaminate", curated=curated.outputs["dataset"], **synthesized
    )
    dataset = clean.outputs["dataset"]
    mix = report = prompts = ""
    if recipe.sft:
        mixed = step(c.mix, "mix", dataset=dataset).outputs
        mix, report = mixed["dataset"], mixed["report"]
    if recipe.respond:
        prompts = out(step(c.sample_prompts, "sample-prompts", dataset=dataset, mix=mix))
    return Prepared(
        dataset=dataset, card=curated.outputs["card"], evidence=clean.outputs["evidence"],
        mix=mix, mix_report=report, prompts=prompts,
    )  # fmt: skip


def _prepare_in_one(step: Step, nodes: Sequence[Node]) -> Prepared:
    made = step(c.prepare, *(node.name for node in nodes)).outputs
    return Prepared(**{field.name: made[field.name] for field in fields(Prepared)})


# The two fan-outs are pipelines of their own: inside a ParallelFor, kfp.local 2.17 replaces every
# output of an earlier task by the loop's item, but leaves a pipeline's own parameters alone.

_LISTS = ("completions", *(f"completions_{i}" for i in range(2, MOST_KINDS + 1)))


def _answer_with_pool(
    config: RespondConfig, nodes: dict[str, Node], where: Placement
) -> list[tuple[list[str], BaseComponent]]:
    """One fan-out for each kind of pod in the pool: its members, and the pipeline of it."""
    kinds: dict[object, list[str]] = {}
    for member in config.pool:
        kinds.setdefault(where.kind(nodes[f"respond-{member.name}"]), []).append(member.name)
    if len(kinds) > MOST_KINDS:
        raise RecipeError(
            f"respond.pool asks for {len(kinds)} kinds of pods (resources and type of GPU); "
            f"bring its members' `resources` to at most {MOST_KINDS}"
        )
    return [
        (names, _answer_with(f"respond-{i}" if i else "respond", names, nodes, where))
        for i, names in enumerate(kinds.values())
    ]


def _answer_with(
    name: str, members: list[str], nodes: dict[str, Node], where: Placement
) -> BaseComponent:
    @dsl.pipeline(name=name)
    def respond(run: str, prompts: str, base: str, sft: str = "") -> list[str]:
        with dsl.ParallelFor(members, parallelism=where.at_once or None) as member:
            task = c.respond(run=run, member=member, prompts=prompts, base=base, sft=sft)
            where.place(task, [nodes[f"respond-{name}"] for name in members])
        return dsl.Collected(out(task))

    return respond


def _evaluate_models(names: list[str], nodes: dict[str, Node], where: Placement) -> BaseComponent:
    @dsl.pipeline(name="evaluate")
    def evaluate(run: str, base: str, sft: str = "", dpo: str = "", rlvr: str = "") -> list[str]:
        with dsl.ParallelFor(names, parallelism=where.at_once or None) as node:
            task = c.evaluate(run=run, node=node, base=base, sft=sft, dpo=dpo, rlvr=rlvr)
            where.place(task, [nodes[name] for name in names])
        return dsl.Collected(out(task))

    return evaluate

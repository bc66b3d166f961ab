"""The pipeline of a recipe: which stage reads what from which.

Read top to bottom, it is the recipe. The same function runs on the laptop (`kfp.local`) and
compiles for Kubeflow Pipelines. (KFP reads real annotations, not postponed ones.)
"""

from collections.abc import Callable
from typing import Any

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from caravan.recipe import Recipe
from caravan_pipelines import components as c
from caravan_pipelines.graph import evaluated_models


def build_pipeline(recipe: Recipe) -> BaseComponent:
    """The pipeline of `recipe`, with the parameters `recipe_json` and `run` (a run's id)."""
    has_pairs = recipe.respond is not None
    answer = _answer_with_pool(recipe) if has_pairs else None
    evaluate = _evaluate_models(evaluated_models(recipe))

    @dsl.pipeline(name=recipe.name, description=recipe.description or recipe.name)
    def pipeline(recipe_json: str, run: str):  # type: ignore[no-untyped-def]  # KFP refuses None
        def step(component: Callable[..., Any], **inputs: Any) -> Any:
            return component(recipe=recipe_json, run=run, **inputs)

        base = out(step(c.base))
        curated = step(c.curate)
        synthesized = {"synthesized": out(step(c.synthesize))} if recipe.synthesize else {}
        clean = step(c.decontaminate, curated=curated.outputs["dataset"], **synthesized)
        dataset = clean.outputs["dataset"]
        mixed = step(c.mix, dataset=dataset)
        sft = out(step(c.sft, model=base, dataset=mixed.outputs["dataset"]))
        models = {"base": base, "sft": sft}

        value_start = {}
        if answer is not None:
            prompts = out(step(c.sample_prompts, dataset=dataset, mix=mixed.outputs["dataset"]))
            completions = step(answer, prompts=prompts, base=base, sft=sft).output
            ratings = out(step(c.judge, prompts=prompts, completions=completions))
            pairs = out(step(c.pair, prompts=prompts, ratings=ratings))
            if recipe.dpo:
                models["dpo"] = out(step(c.dpo, model=sft, pairs=pairs))
            if recipe.reward_model:
                trained = step(c.reward_model, model=sft, pairs=pairs)
                value_start = {"reward_model": out(trained)}
        if recipe.rlvr:
            policy = models.get("dpo", sft)
            models["rlvr"] = out(step(c.rlvr, policy=policy, dataset=dataset, **value_start))

        evaluations = step(evaluate, **models).output
        step(
            c.report,
            models=evaluated_models(recipe),
            evaluations=evaluations,
            card=curated.outputs["card"],
            evidence=clean.outputs["evidence"],
            mix=mixed.outputs["report"],
        )

    return pipeline


def out(task: Any) -> Any:
    """The reference that a component returns, beside its metrics."""
    return task.outputs["Output"]


# The two fan-outs are pipelines of their own: inside a ParallelFor, kfp.local 2.17 replaces every
# output of an earlier task by the loop's item, but leaves a pipeline's own parameters alone.


def _answer_with_pool(recipe: Recipe) -> BaseComponent:
    assert recipe.respond is not None
    members = [member.name for member in recipe.respond.pool]

    @dsl.pipeline(name="respond")
    def respond(recipe: str, run: str, prompts: str, base: str, sft: str) -> list[str]:
        with dsl.ParallelFor(members) as member:
            task = c.respond(
                recipe=recipe, run=run, member=member, prompts=prompts, base=base, sft=sft
            )
        return dsl.Collected(out(task))

    return respond


def _evaluate_models(names: list[str]) -> BaseComponent:
    @dsl.pipeline(name="evaluate")
    def evaluate(
        recipe: str, run: str, base: str, sft: str, dpo: str = "", rlvr: str = ""
    ) -> list[str]:
        with dsl.ParallelFor(names) as model:
            task = c.evaluate(
                recipe=recipe, run=run, model=model, base=base, sft=sft, dpo=dpo, rlvr=rlvr
            )
        return dsl.Collected(out(task))

    return evaluate

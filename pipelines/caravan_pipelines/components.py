"""The KFP components: one for each stage, thin wrappers over `execute`.

A component takes the recipe (as JSON), the run and the references (digests) of what it reads, and
returns the references of what it wrote. The data itself stays in the store. The bodies run in
a process of their own, hence their imports.
"""

from typing import NamedTuple

from kfp import dsl

STAGE_IMAGE = "caravan/stage-cpu-python:0.1.0"

component = dsl.component(base_image=STAGE_IMAGE, install_kfp_package=False)


@component
def base(recipe: str, run: str, metrics: dsl.Output[dsl.Metrics]) -> str:
    """Import or pretrain the base model; returns the model."""
    from caravan_pipelines.step import run_step

    return run_step(recipe, run, "base", {}, metrics)["model"]


@component
def curate(recipe: str, run: str, metrics: dsl.Output[dsl.Metrics]) -> NamedTuple(
    "Curated", [("dataset", str), ("card", str)]
):
    """Load, check and deduplicate every source; returns the dataset and its card."""
    from caravan_pipelines.step import run_step

    out = run_step(recipe, run, "curate", {}, metrics)
    return (out["dataset"], out["card"])


@component
def synthesize(recipe: str, run: str, metrics: dsl.Output[dsl.Metrics]) -> str:
    """Write persona-driven prompts and their responses; returns the dataset."""
    from caravan_pipelines.step import run_step

    return run_step(recipe, run, "synthesize", {}, metrics)["dataset"]


@component
def decontaminate(
    recipe: str, run: str, curated: str, metrics: dsl.Output[dsl.Metrics], synthesized: str = ""
) -> NamedTuple("Decontaminated", [("dataset", str), ("evidence", str)]):
    """Drop what overlaps the evaluation suite; returns the dataset and the evidence."""
    from caravan_pipelines.step import run_step

    inputs = {"curated": curated, "synthesized": synthesized}
    out = run_step(recipe, run, "decontaminate", inputs, metrics)
    return (out["dataset"], out["evidence"])


@component
def mix(recipe: str, run: str, dataset: str, metrics: dsl.Output[dsl.Metrics]) -> NamedTuple(
    "Mixed", [("dataset", str), ("report", str)]
):
    """Weight and downsample the sources; returns the SFT mix and its report."""
    from caravan_pipelines.step import run_step

    out = run_step(recipe, run, "mix", {"dataset": dataset}, metrics)
    return (out["dataset"], out["report"])


@component
def sft(recipe: str, run: str, model: str, dataset: str, metrics: dsl.Output[dsl.Metrics]) -> str:
    """Supervised fine-tuning; returns the model."""
    from caravan_pipelines.step import run_step

    return run_step(recipe, run, "sft", {"model": model, "dataset": dataset}, metrics)["model"]


@component
def sample_prompts(
    recipe: str, run: str, dataset: str, mix: str, metrics: dsl.Output[dsl.Metrics]
) -> str:
    """Draw prompts used and unused in SFT; returns the prompts."""
    from caravan_pipelines.step import run_step

    inputs = {"dataset": dataset, "mix": mix}
    return run_step(recipe, run, "sample-prompts", inputs, metrics)["prompts"]


@component
def respond(
    recipe: str,
    run: str,
    member: str,
    prompts: str,
    base: str,
    sft: str,
    metrics: dsl.Output[dsl.Metrics],
) -> str:
    """Complete the prompts with one model of the pool; returns the completions."""
    from caravan_pipelines.step import pool_artifact, run_step

    trained = pool_artifact(recipe, member)
    inputs = {"prompts": prompts, "model": {"base": base, "sft": sft, "": ""}[trained]}
    return run_step(recipe, run, f"respond-{member}", inputs, metrics)["completions"]


@component
def judge(
    recipe: str,
    run: str,
    prompts: str,
    completions: list,  # type: ignore[type-arg]
    metrics: dsl.Output[dsl.Metrics],
) -> str:
    """Rate every completion on four aspects; returns the ratings."""
    from caravan_pipelines.step import run_step

    inputs = {"prompts": prompts}
    inputs |= {f"completions-{i}": digest for i, digest in enumerate(completions)}
    return run_step(recipe, run, "judge", inputs, metrics)["ratings"]


@component
def pair(
    recipe: str, run: str, prompts: str, ratings: str, metrics: dsl.Output[dsl.Metrics]
) -> str:
    """Make chosen and rejected of rated completions; returns the pairs."""
    from caravan_pipelines.step import run_step

    inputs = {"prompts": prompts, "ratings": ratings}
    return run_step(recipe, run, "pair", inputs, metrics)["pairs"]


@component
def dpo(recipe: str, run: str, model: str, pairs: str, metrics: dsl.Output[dsl.Metrics]) -> str:
    """Preference tuning; returns the model."""
    from caravan_pipelines.step import run_step

    return run_step(recipe, run, "dpo", {"model": model, "pairs": pairs}, metrics)["model"]


@component
def reward_model(
    recipe: str, run: str, model: str, pairs: str, metrics: dsl.Output[dsl.Metrics]
) -> str:
    """Train a reward model, which the value model of PPO starts from; returns the model."""
    from caravan_pipelines.step import run_step

    return run_step(recipe, run, "reward-model", {"model": model, "pairs": pairs}, metrics)["model"]


@component
def rlvr(
    recipe: str,
    run: str,
    policy: str,
    dataset: str,
    metrics: dsl.Output[dsl.Metrics],
    reward_model: str = "",
) -> str:
    """Reinforcement learning with verifiable rewards; returns the model."""
    from caravan_pipelines.step import run_step

    inputs = {"policy": policy, "dataset": dataset, "reward_model": reward_model}
    return run_step(recipe, run, "rlvr", inputs, metrics)["model"]


@component
def evaluate(
    recipe: str,
    run: str,
    model: str,
    base: str,
    sft: str,
    metrics: dsl.Output[dsl.Metrics],
    dpo: str = "",
    rlvr: str = "",
) -> str:
    """Score the model called `model` on the suite; returns the evaluation."""
    from caravan_pipelines.step import run_step

    digest = {"base": base, "sft": sft, "dpo": dpo, "rlvr": rlvr}[model]
    return run_step(recipe, run, f"evaluate-{model}", {"model": digest}, metrics)["evaluation"]


@component
def report(
    recipe: str,
    run: str,
    models: list,  # type: ignore[type-arg]
    evaluations: list,  # type: ignore[type-arg]
    card: str,
    evidence: str,
    mix: str,
    metrics: dsl.Output[dsl.Metrics],
) -> str:
    """Say what each stage changed; returns the report."""
    from caravan_pipelines.step import run_step

    inputs = {"card": card, "evidence": evidence, "mix": mix}
    inputs |= {f"evaluation-{m}": e for m, e in zip(models, evaluations, strict=True)}
    return run_step(recipe, run, "report", inputs, metrics)["report"]

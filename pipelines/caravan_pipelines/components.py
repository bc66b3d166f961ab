"""The KFP components: one for each stage, thin wrappers over `execute`.

A component takes the id of the run and the references (digests) of what it reads, and returns the
references of what it wrote. The recipe is in the registry, the data in the store. `metrics` and
`summary` are what KFP's own page shows. The bodies run in a process of their own, hence their
imports.

`prepare` and `rate` do the work of several short stages in one pod; see `together.py`.
"""

from typing import NamedTuple

from kfp import dsl

STAGE_IMAGE = "caravan/stage-cpu:0.1.0"

component = dsl.component(base_image=STAGE_IMAGE, install_kfp_package=False)


@component
def base(run: str, metrics: dsl.Output[dsl.Metrics], summary: dsl.Output[dsl.Markdown]) -> str:
    """Import or pretrain the base model; returns the model."""
    from caravan_pipelines.step import run_step

    return run_step(run, "base", {}, metrics, summary)["model"]


@component
def curate(
    run: str, metrics: dsl.Output[dsl.Metrics], summary: dsl.Output[dsl.Markdown]
) -> NamedTuple("Curated", [("dataset", str), ("card", str)]):
    """Load, check and deduplicate every source; returns the dataset and its card."""
    from caravan_pipelines.step import run_step

    out = run_step(run, "curate", {}, metrics, summary)
    return (out["dataset"], out["card"])


@component
def synthesize(
    run: str, metrics: dsl.Output[dsl.Metrics], summary: dsl.Output[dsl.Markdown]
) -> str:
    """Write persona-driven prompts and their responses; returns the dataset."""
    from caravan_pipelines.step import run_step

    return run_step(run, "synthesize", {}, metrics, summary)["dataset"]


@component
def decontaminate(
    run: str,
    curated: str,
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
    synthesized: str = "",
) -> NamedTuple("Decontaminated", [("dataset", str), ("evidence", str)]):
    """Drop what overlaps the evaluation suite; returns the dataset and the evidence."""
    from caravan_pipelines.step import run_step

    inputs = {"curated": curated, "synthesized": synthesized}
    out = run_step(run, "decontaminate", inputs, metrics, summary)
    return (out["dataset"], out["evidence"])


@component
def mix(
    run: str, dataset: str, metrics: dsl.Output[dsl.Metrics], summary: dsl.Output[dsl.Markdown]
) -> NamedTuple("Mixed", [("dataset", str), ("report", str)]):
    """Weight and downsample the sources; returns the SFT mix and its report."""
    from caravan_pipelines.step import run_step

    out = run_step(run, "mix", {"dataset": dataset}, metrics, summary)
    return (out["dataset"], out["report"])


@component
def sample_prompts(
    run: str,
    dataset: str,
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
    mix: str = "",
) -> str:
    """Draw prompts used and unused in SFT; returns the prompts."""
    from caravan_pipelines.step import run_step

    inputs = {"dataset": dataset, "mix": mix}
    return run_step(run, "sample-prompts", inputs, metrics, summary)["prompts"]


@component
def prepare(run: str, summary: dsl.Output[dsl.Markdown]) -> NamedTuple(
    "Prepared",
    [
        ("dataset", str),
        ("card", str),
        ("evidence", str),
        ("mix", str),
        ("mix_report", str),
        ("prompts", str),
    ],
):
    """From `curate` to `sample_prompts` in one pod; returns what they return."""
    from caravan_pipelines import together

    out = together.prepare(run, summary)
    return (out.dataset, out.card, out.evidence, out.mix, out.mix_report, out.prompts)


@component
def sft(
    run: str,
    model: str,
    dataset: str,
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
) -> NamedTuple("Tuned", [("model", str), ("candidates", dict)]):
    """Supervised fine-tuning; returns the model, or by their steps those that it is yet to be
    selected from."""
    from caravan.stages.candidates import candidates
    from caravan_pipelines.step import run_step

    inputs = {"model": model, "dataset": dataset}
    out = run_step(run, "sft", inputs, metrics, summary)
    return (out.pop("model", ""), candidates(out))


@component
def respond(
    run: str,
    member: str,
    prompts: str,
    base: str,
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
    sft: str = "",
) -> str:
    """Complete the prompts with one model of the pool; returns the completions."""
    from caravan_pipelines.step import pool_artifact, run_step

    trained = pool_artifact(run, member)
    inputs = {"prompts": prompts, "model": {"base": base, "sft": sft, "": ""}[trained]}
    return run_step(run, f"respond-{member}", inputs, metrics, summary)["completions"]


@component
def judge(
    run: str,
    prompts: str,
    members: list,  # type: ignore[type-arg]
    completions: list,  # type: ignore[type-arg]
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
    completions_2: list = [],  # type: ignore[type-arg]  # noqa: B006
    completions_3: list = [],  # type: ignore[type-arg]  # noqa: B006
    completions_4: list = [],  # type: ignore[type-arg]  # noqa: B006
) -> str:
    """Rate every completion on four aspects; returns the ratings.

    `members` names whose completions they are, over the lists of all fan-outs.
    """
    from caravan_pipelines.step import judge_inputs, run_step

    lists = completions + completions_2 + completions_3 + completions_4
    inputs = judge_inputs(run, prompts, members, lists)
    return run_step(run, "judge", inputs, metrics, summary)["ratings"]


@component
def pair(
    run: str,
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
    prompts: str = "",
    ratings: str = "",
) -> str:
    """Make chosen and rejected of rated completions, or read pairs; returns the pairs."""
    from caravan_pipelines.step import run_step

    inputs = {"prompts": prompts, "ratings": ratings}
    return run_step(run, "pair", inputs, metrics, summary)["pairs"]


@component
def rate(
    run: str,
    prompts: str,
    members: list,  # type: ignore[type-arg]
    completions: list,  # type: ignore[type-arg]
    summary: dsl.Output[dsl.Markdown],
    completions_2: list = [],  # type: ignore[type-arg]  # noqa: B006
    completions_3: list = [],  # type: ignore[type-arg]  # noqa: B006
    completions_4: list = [],  # type: ignore[type-arg]  # noqa: B006
) -> str:
    """`judge` and `pair` in one pod; returns the pairs."""
    from caravan_pipelines import together
    from caravan_pipelines.step import judge_inputs

    lists = completions + completions_2 + completions_3 + completions_4
    return together.rate(run, judge_inputs(run, prompts, members, lists), summary)


@component
def reference(
    run: str,
    model: str,
    pairs: str,
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
) -> str:
    """Score the pairs under the policy that preference tuning starts from; returns the scores."""
    from caravan_pipelines.step import run_step

    inputs = {"model": model, "pairs": pairs}
    return run_step(run, "reference", inputs, metrics, summary)["logprobs"]


@component
def dpo(
    run: str,
    model: str,
    pairs: str,
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
    reference: str = "",
) -> NamedTuple("Preferring", [("model", str), ("candidates", dict)]):
    """Preference tuning; returns the model, or by their steps those that it is yet to be selected
    from."""
    from caravan.stages.candidates import candidates
    from caravan_pipelines.step import run_step

    inputs = {"model": model, "pairs": pairs, "reference": reference}
    out = run_step(run, "dpo", inputs, metrics, summary)
    return (out.pop("model", ""), candidates(out))


@component
def reward_model(
    run: str,
    model: str,
    pairs: str,
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
) -> str:
    """Train a reward model: PPO's value model starts from it, and it can score completions of RLVR.
    Returns the model."""
    from caravan_pipelines.step import run_step

    inputs = {"model": model, "pairs": pairs}
    return run_step(run, "reward-model", inputs, metrics, summary)["model"]


@component
def rlvr(
    run: str,
    policy: str,
    dataset: str,
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
    reward_model: str = "",
) -> NamedTuple("Reinforced", [("model", str), ("candidates", dict)]):
    """Reinforcement learning with verifiable rewards; returns the model, or by their steps those
    that it is yet to be selected from."""
    from caravan.stages.candidates import candidates
    from caravan_pipelines.step import run_step

    inputs = {"policy": policy, "dataset": dataset, "reward_model": reward_model}
    out = run_step(run, "rlvr", inputs, metrics, summary)
    return (out.pop("model", ""), candidates(out))


@component
def select(
    run: str,
    node: str,
    candidates: dict,  # type: ignore[type-arg]
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
) -> str:
    """Take the best of the models that a training stage, as `node` says, went through; returns
    it."""
    from caravan_pipelines.step import run_step

    return run_step(run, node, candidates, metrics, summary)["model"]


@component
def evaluate(
    run: str,
    node: str,
    base: str,
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
    sft: str = "",
    dpo: str = "",
    rlvr: str = "",
) -> str:
    """Score one model on the suite or on a shard of it, as `node` says; returns the evaluation."""
    from caravan.evals.models import model_of
    from caravan_pipelines.step import run_step

    models = {"base": base, "sft": sft, "dpo": dpo, "rlvr": rlvr}
    inputs = {"model": models[model_of(node) or ""]}
    return run_step(run, node, inputs, metrics, summary)["evaluation"]


@component
def report(
    run: str,
    nodes: list,  # type: ignore[type-arg]
    evaluations: list,  # type: ignore[type-arg]
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
    card: str = "",
    evidence: str = "",
    mix: str = "",
) -> str:
    """Say what each stage changed; returns the report.

    `nodes` names the stage runs that made the evaluations.
    """
    from caravan_pipelines.step import run_step

    inputs = {"card": card, "evidence": evidence, "mix": mix}
    names = [node.replace("evaluate-", "evaluation-") for node in nodes]
    inputs |= dict(zip(names, evaluations, strict=True))
    return run_step(run, "report", inputs, metrics, summary)["report"]

"""Several short stages in one pod: what a pod costs to start is then paid once.

Two chains qualify: the data stages up to the prompts, and judging with pairing. A chain runs
together when all its stages ask for the same resources, without GPUs and on one node: then the
same pod suits every one, and a large recipe that gives its stages different machines keeps them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from caravan_pipelines.graph import Node
from caravan_pipelines.run_data import recipe_of
from caravan_pipelines.step import Markdown, run_step

PREPARE = ("curate", "synthesize", "decontaminate", "mix", "sample-prompts")
RATE = ("judge", "pair")


@dataclass(frozen=True)
class Prepared:
    """References that the data stages return; those of stages that the recipe leaves out are
    empty."""

    dataset: str = ""
    card: str = ""
    evidence: str = ""
    mix: str = ""
    mix_report: str = ""
    prompts: str = ""


def fits_one_pod(nodes: Sequence[Node]) -> bool:
    """Whether one pod suits all `nodes`; if there are none, none does."""
    if not nodes:
        return False
    resources = [node.resources for node in nodes]
    alike = all(each == resources[0] for each in resources)
    return alike and not resources[0].gpus and resources[0].nodes == 1


def chain(nodes: Sequence[Node], names: Sequence[str]) -> list[Node]:
    """Those of `nodes` that `names` names, in that order."""
    by_name = {node.name: node for node in nodes}
    return [by_name[name] for name in names if name in by_name]


def prepare(run: str, summary: Markdown) -> Prepared:
    """Run the data stages of a run one after another."""
    recipe = recipe_of(run)

    def step(node: str, **inputs: str) -> dict[str, str]:
        return run_step(run, node, inputs, None, summary)

    curated = step("curate")
    synthesized = {"synthesized": step("synthesize")["dataset"]} if recipe.synthesize else {}
    clean = step("decontaminate", curated=curated["dataset"], **synthesized)
    mix = report = prompts = ""
    if recipe.sft:
        mixed = step("mix", dataset=clean["dataset"])
        mix, report = mixed["dataset"], mixed["report"]
    if recipe.respond:
        prompts = step("sample-prompts", dataset=clean["dataset"], mix=mix)["prompts"]
    return Prepared(
        dataset=clean["dataset"], card=curated["card"], evidence=clean["evidence"],
        mix=mix, mix_report=report, prompts=prompts,
    )  # fmt: skip


def rate(run: str, judged: Mapping[str, str], summary: Markdown) -> str:
    """Judge the completions and pair them; returns the pairs."""
    ratings = run_step(run, "judge", judged, None, summary)["ratings"]
    inputs = {"prompts": judged["prompts"], "ratings": ratings}
    return run_step(run, "pair", inputs, None, summary)["pairs"]

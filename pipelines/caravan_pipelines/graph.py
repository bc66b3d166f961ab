"""Which stages a recipe has, and what each reads: the recipe as a directed graph.

Everything that runs, checks or draws a pipeline starts from `stage_graph`.
"""

from __future__ import annotations

from dataclasses import dataclass

from caravan.recipe import Config, Recipe, Resources


@dataclass(frozen=True)
class Node:
    """One stage run of the pipeline."""

    name: str
    """Unique in the run: `sft`, `respond-terse`, `evaluate-dpo`."""
    stage: str
    """Module of `caravan.stages`."""
    config: Config
    inputs: dict[str, str]
    """Input name to `node.output`. An input that gathers several has names `x-0`, `x-1`, ..."""
    resources: Resources
    group: str = ""
    """Nodes of one group are independent of each other and run at the same time."""


def stage_graph(recipe: Recipe) -> tuple[Node, ...]:
    """The nodes in an order in which they can run one after another."""
    raise NotImplementedError

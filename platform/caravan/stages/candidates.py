"""The policies along the way of a training stage that another takes one of, after both are done.

`sft`, `dpo` and `rlvr` give them out under the names of their steps (`step-100`), and nothing but
the stage run that selects needs them (`select-sft`, `select-dpo`, `select`): once it is done they
may be removed from the store, and neither of the two runs again for it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from caravan.registry import Registry, StageRunRow, State
from caravan.stages.key import load_stage, stage_key
from caravan.store import Store

STEP = "step-"
"""What the name of a candidate begins with."""
SELECT = "select"
"""The stage that selects."""
TAKEN = "selected_step"
"""Metric of a training stage that has itself selected, by the loss of held-out rows."""


def selection_of(node: str) -> str:
    """The stage run that selects from what `node` gives out, where its recipe has one."""
    return SELECT if node == "rlvr" else f"{SELECT}-{node}"


def selects_from(node: str) -> str:
    """The stage run that gives out what `node`, a selection, selects from."""
    return "rlvr" if node == SELECT else node.removeprefix(f"{SELECT}-")


def candidates(outputs: Mapping[str, str]) -> dict[str, str]:
    """Those of a training stage's outputs that are selected from."""
    return {name: digest for name, digest in outputs.items() if name.startswith(STEP)}


def selected(stage: StageRunRow) -> str:
    """`selected step 40 of 60`; empty of a stage run that has selected nothing."""
    if stage.state is not State.SUCCEEDED or (step := selected_step(stage)) is None:
        return ""
    steps = [int(name.removeprefix(STEP)) for name in candidates(stage.inputs)]
    last = max(steps, default=stage.progress_total)  # which is 0 where the stage run is reused
    return f"selected step {step:,}" + (f" of {last:,}" if last else "")


def selected_step(stage: StageRunRow) -> int | None:
    """The step whose policy a finished stage run has selected, of those of another or its own."""
    step = stage.metrics.get("step" if stage.stage == SELECT else TAKEN)
    return None if step is None else int(step)


@dataclass(frozen=True)
class Selection:
    """The stage run that selects from the candidates of another of its run."""

    stage: str
    config: BaseModel
    seed: int
    recipe_dir: Path

    def done(self, read: Mapping[str, str], registry: Registry, store: Store) -> bool:
        """Whether it has selected from these, and the store has what it made."""
        module = load_stage(self.stage)
        key = stage_key(module, self.config, read, self.seed, recipe_dir=self.recipe_dir)
        finished = registry.find_finished(key)
        return finished is not None and all(map(store.exists, finished.outputs.values()))


def missed(
    outputs: Mapping[str, str], selection: Selection | None, registry: Registry, store: Store
) -> list[str]:
    """Those of a finished stage run's outputs that the store has no longer and that are needed."""
    gone = [name for name, digest in outputs.items() if not store.exists(digest)]
    read = candidates(outputs)
    if selection is None or not read.keys() & gone or not selection.done(read, registry, store):
        return gone
    return [name for name in gone if name not in read]


def not_taken(runs: Iterable[tuple[Collection[StageRunRow], bool]]) -> set[str]:
    """The candidates that no selection took, and that nothing else has read or is yet to read.

    Args:
        runs: of every run its stage runs, and whether it keeps all that they refer to.
    """
    given: set[str] = set()
    needed: set[str] = set()
    for stages, keeps_all in runs:
        selected_from = set() if keeps_all else _selected_from(stages)
        for stage in stages:
            made = set(stage.outputs.values())
            if stage.node in selected_from:
                made -= set(candidates(stage.outputs).values())
            read = set(stage.inputs.values())
            if stage.stage == SELECT and selects_from(stage.node) in selected_from:
                given |= read
                read = set()
            needed |= made | read
    return given - needed


def _selected_from(stages: Iterable[StageRunRow]) -> set[str]:
    """The stage runs of a run from which it has selected what they give out now: that may have been
    made anew since, in a run that was resumed with other data or tasks."""
    ends = {s.node: s.finished_at for s in stages if s.state is State.SUCCEEDED}
    return {
        node
        for node, made in ends.items()
        if (chosen := ends.get(selection_of(node))) is not None
        and made is not None
        and made <= chosen
    }

"""Draw the prompts that get preference pairs, from those used in SFT and those not used in it.

Within one origin every source is drawn from in proportion to its rows; no prompt is drawn twice.

Inputs: `dataset`, and `mix` where there is SFT.

Output:
    prompts: conversations that end with a user's turn, with their verifier and ground truth.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from caravan.data.dedup import normalise, text_of
from caravan.data.io import ROWS, read_rows, write_rows
from caravan.data.mixing import generator, group_by_source, original_id, stratified
from caravan.data.records import Conversation
from caravan.errors import DataError
from caravan.recipe import PromptComponent, SamplePromptsConfig
from caravan.stages.context import StageContext, StageResult

NAME = "sample-prompts"
VERSION = 1

logger = logging.getLogger(__name__)


def run(
    config: SamplePromptsConfig, inputs: Mapping[str, Path], context: StageContext
) -> StageResult:
    mix = read_rows(inputs["mix"], Conversation) if "mix" in inputs else ()
    used = {original_id(row.id) for row in mix}
    prompts = distinct_prompts(read_rows(inputs["dataset"], Conversation), used)
    drawn: list[Conversation] = []
    metrics: dict[str, float] = {}
    taken: set[str] = set()
    for component in components(config):
        pool = [row for row in prompts if _belongs(row, component, used) and row.id not in taken]
        rows = stratified(
            group_by_source(pool), component.count, context.seed, f"prompts/{component.name}"
        )
        taken.update(row.id for row in rows)
        drawn += rows
        metrics[component.name] = len(rows)
        metrics[f"{component.name}/missing"] = component.count - len(rows)
        if len(rows) < component.count:
            wanted, found = f"{component.count:,}", f"{len(rows):,}"
            logger.warning("prompts %s: %s asked for, %s found", component.name, wanted, found)
    if not drawn:
        raise DataError("no prompt fits sample_prompts; look at its sources and at the mix")
    generator(context.seed, "prompts").shuffle(drawn)
    write_rows(context.output("prompts", "dataset") / ROWS, drawn)
    return StageResult(metrics={"rows": len(drawn), **metrics})


def components(config: SamplePromptsConfig) -> tuple[PromptComponent, ...]:
    """The plain split as components, or the components as they are."""
    if config.components:
        return config.components
    split = {"used_in_sft": config.used_in_sft, "unused_in_sft": config.unused_in_sft}
    return tuple(
        PromptComponent.model_validate({"name": name, "drawn_from": name, "count": count})
        for name, count in split.items()
        if count
    )


def distinct_prompts(rows: Iterable[Conversation], used: set[str]) -> list[Conversation]:
    """Each prompt once, without its reply. Of several rows with one prompt, a used one stays:
    a prompt that SFT has seen must not count as unseen."""
    found: dict[str, Conversation] = {}
    for row in rows:
        key = normalise(text_of(row.prompt))
        if key not in found or (row.id in used and found[key].id not in used):
            found[key] = row.model_copy(update={"messages": row.prompt})
    return list(found.values())


def _belongs(row: Conversation, component: PromptComponent, used: set[str]) -> bool:
    if component.sources and row.source not in component.sources:
        return False
    return component.drawn_from == "any" or (
        (row.id in used) == (component.drawn_from == "used_in_sft")
    )

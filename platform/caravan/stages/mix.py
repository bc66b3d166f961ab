"""Choose the SFT mix: so many rows of each source, shuffled together.

Outputs:
    dataset: the chosen rows; a copy beyond the first has an id of its own (`source/3~2`).
    report: mix.json (rows by source, by skill, by licence; sources left out; rows missing).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

from caravan.data.io import ROWS, read_rows, write_json, write_rows
from caravan.data.mixing import count_rows, group_by_source, mix_rows
from caravan.data.records import Conversation
from caravan.errors import DataError
from caravan.recipe import MixComponent, MixConfig
from caravan.recipe.checks import suggest
from caravan.stages.context import StageContext, StageResult

NAME = "mix"
VERSION = 1

logger = logging.getLogger(__name__)


def run(config: MixConfig, inputs: Mapping[str, Path], context: StageContext) -> StageResult:
    by_source: dict[str, list[Conversation]] = {
        source: [] for source in _dropped_sources(inputs["dataset"])
    }
    by_source |= group_by_source(read_rows(inputs["dataset"], Conversation))
    components = config.dataset_mixer_list or tuple(
        MixComponent(source=source) for source in by_source
    )
    for component in components:
        if component.source not in by_source:
            raise DataError(
                f"mix.dataset_mixer_list: the dataset has no source {component.source!r}"
                + suggest(component.source, by_source)
            )
    mix = mix_rows(by_source, components, context.seed)
    if not mix.rows:
        raise DataError("the mix is empty; look at mix.dataset_mixer_list and at decontamination")
    for component in components:
        _warn_of_few(component, len(by_source[component.source]))
    write_rows(context.output("dataset", "dataset") / ROWS, mix.rows)
    left_out = sorted(set(by_source) - {component.source for component in components})
    counts = count_rows(mix.rows)
    report = {
        "rows": len(mix.rows),
        **counts,
        "available": {source: len(rows) for source, rows in by_source.items()},
        "left_out": left_out,
        "missing": mix.missing,
    }
    write_json(context.output("report", "report") / "mix.json", report)
    metrics = {"rows": float(len(mix.rows)), "missing": float(sum(mix.missing.values()))}
    metrics |= {f"skill/{skill}": float(n) for skill, n in counts["by_skill"].items()}
    return StageResult(metrics=metrics)


def _warn_of_few(component: MixComponent, left: int) -> None:
    if left == 0:
        logger.warning("source %s: decontamination left none of its rows", component.source)
    elif component.count is not None and component.count > left:
        wanted, has = f"{component.count:,}", f"{left:,}"
        logger.warning("source %s: %s rows asked for, %s left", component.source, wanted, has)


def _dropped_sources(dataset: Path) -> list[str]:
    """Sources that decontamination left nothing of: known names, no rows."""
    card = dataset / "card.json"
    if not card.exists():
        return []
    sources = json.loads(card.read_text(encoding="utf-8")).get("sources", [])
    return [source["name"] for source in sources if not source["kept"]]

"""What the training data is made of: the curate card, decontamination's evidence, the mix."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd

ROW_FACTS = ("source", "skill", "license")
EVIDENCE_FACTS = ("source", "task")


def row_facts(row: Mapping[str, Any]) -> Mapping[str, Any]:
    return row


def source_table(
    card: Mapping[str, Any] | None,
    overlap: Mapping[str, Any] | None,
    mix: Mapping[str, Any] | None,
    trained: Mapping[str, int] | None,
) -> pd.DataFrame:
    """One line per source with its rows after each step; None where the step has not said."""
    after = _cleaned(overlap)
    mixed = (mix or {}).get("by_source", {})
    described = {s["name"]: s for s in (card or {}).get("sources", [])}
    names = list(dict.fromkeys([*described, *after, *mixed]))
    lines = []
    for name in names:
        source = described.get(name, {})
        lines.append({
            "source": name,
            "skill": source.get("skill", "synthesised"),
            "license": source.get("license", ""),
            "available": source.get("available"),
            "curated": source.get("kept"),
            "clean": after.get(name) if overlap else None,
            "in the mix": mixed.get(name, 0) if mix else None,
            "trained on": None if trained is None else trained.get(name, 0),
        })  # fmt: skip
    return pd.DataFrame(lines)


def _cleaned(overlap: Mapping[str, Any] | None) -> dict[str, int]:
    if not overlap:
        return {}
    dropped = overlap.get("dropped_rows", {})
    return {source: n - dropped.get(source, 0) for source, n in overlap.get("rows", {}).items()}


class Totals(NamedTuple):
    available: int | None
    curated: int | None
    clean: int | None
    mixed: int | None
    trained: int | None


def totals(
    card: Mapping[str, Any] | None,
    overlap: Mapping[str, Any] | None,
    mix: Mapping[str, Any] | None,
    trained: Mapping[str, int] | None,
) -> Totals:
    return Totals(
        card["available"] if card else None,
        card["kept"] if card else None,
        sum(_cleaned(overlap).values()) if overlap else None,
        mix["rows"] if mix else None,
        None if trained is None else sum(trained.values()),
    )


def drops(card: Mapping[str, Any] | None, overlap: Mapping[str, Any] | None) -> pd.DataFrame:
    """`reason`, `source`, `rows`: what was taken out, the most frequent reason first."""
    lines = [
        (reason, source["name"], count)
        for source in (card or {}).get("sources", [])
        for reason, count in source["dropped"].items()
    ]
    whole = (overlap or {}).get("dropped_sources", {})
    lines += [
        ("contaminated source" if source in whole else "contaminated row", source, count)
        for source, count in (overlap or {}).get("dropped_rows", {}).items()
        if count
    ]
    table = pd.DataFrame(lines, columns=["reason", "source", "rows"])
    order = table.groupby("reason")["rows"].sum().sort_values(ascending=False).index
    return table.sort_values(
        "reason", key=lambda names: names.map({r: i for i, r in enumerate(order)}), kind="stable"
    ).reset_index(drop=True)


def shares(overlap: Mapping[str, Any]) -> pd.DataFrame:
    """`source`, `task`, `share`: instances of a task that a source contaminates; every pair."""
    tasks = list(overlap.get("instances", {}))
    lines = [
        (source, task, by_task.get(task, {}).get("share", 0.0))
        for source, by_task in overlap.get("overlap", {}).items()
        for task in tasks
        if by_task
    ]
    return pd.DataFrame(lines, columns=["source", "task", "share"])


def counts(by_name: Mapping[str, int]) -> pd.DataFrame:
    """`name`, `rows`, most frequent first."""
    ordered = sorted(by_name.items(), key=lambda item: -item[1])
    return pd.DataFrame(ordered, columns=["name", "rows"])

"""The data card: what went into a dataset, what was left out and why, under which licence."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from caravan.data.missing import any_missing, may_be_missing
from caravan.data.records import Conversation
from caravan.errors import some
from caravan.recipe import Source

SAMPLES = 2
"""Rows of each source shown in full: its first ones."""
SAMPLE_CHARACTERS = 600
NAMED = 8
"""Columns named where there are many."""


@dataclass
class SourceCard:
    """Counts of one source, kept while its rows stream by."""

    source: Source
    available: int = 0
    without_reply: int = 0
    unread: set[str] = field(default_factory=set)
    """Columns of its rows that nothing reads."""
    missing: list[str] = field(default_factory=list)
    """Ids of rows with a text that may stand for a missing value."""
    dropped: Counter[str] = field(default_factory=Counter)
    verifiable: int = 0
    turns: list[int] = field(default_factory=list)
    prompt_words: list[int] = field(default_factory=list)
    response_words: list[int] = field(default_factory=list)
    samples: list[Conversation] = field(default_factory=list)

    @property
    def kept(self) -> int:
        return self.available - self.dropped.total()

    def count(self, row: Conversation) -> None:
        """Count a row that was read."""
        self.available += 1
        self.without_reply += not row.has_reply
        if any_missing(message.content for message in row.messages):
            self.missing.append(row.id)

    def remarks(self) -> list[str]:
        """What whoever chose the source may not expect of its rows."""
        said = []
        if self.without_reply == self.available:
            said.append("none has a reply: prompts only, not trained on in SFT")
        elif self.without_reply:
            said.append(f"{self.without_reply:,} without a reply")
        if self.missing:
            said.append(may_be_missing(self.missing))
        if self.unread:
            said.append(not_read(self.unread))
        return said

    def keep(self, row: Conversation) -> None:
        """Count a row that stays."""
        words = Counter[str]()
        for message in row.messages:
            words[message.role] += len(message.content.split())
        self.turns.append(len(row.messages))
        self.prompt_words.append(words["system"] + words["user"])
        self.response_words.append(words["assistant"])
        self.verifiable += row.ground_truth is not None
        if len(self.samples) < SAMPLES:
            self.samples.append(row)

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.source.name,
            "origin": self.source.origin.model_dump(mode="json"),
            "license": self.source.license,
            "provenance": self.source.provenance,
            "skill": self.source.skill,
            "available": self.available,
            "kept": self.kept,
            "without_reply": self.without_reply,
            "may_be_missing": len(self.missing),
            "columns_not_read": sorted(self.unread),
            "dropped": dict(sorted(self.dropped.items())),
            "verifiable": self.verifiable,
            "messages": summary(self.turns),
            "prompt_words": summary(self.prompt_words),
            "response_words": summary(self.response_words),
            "samples": [row.model_dump(mode="json") for row in self.samples],
        }


def not_read(columns: Iterable[str]) -> str:
    """Names the columns, which are text of anyone."""
    names = [name if name.isidentifier() else repr(name) for name in sorted(columns)]
    return f"columns not read: {some(names, NAMED)}"


def summary(values: Sequence[int]) -> dict[str, float]:
    """Mean, median, 90th percentile and largest of `values`; empty for none."""
    if not values:
        return {}
    ordered = sorted(values)
    last = len(ordered) - 1
    return {
        "mean": round(sum(ordered) / len(ordered), 2),
        "median": ordered[last // 2],
        "p90": ordered[last * 9 // 10],
        "max": ordered[-1],
    }


def card_json(cards: Iterable[SourceCard]) -> dict[str, Any]:
    cards = list(cards)
    by_skill, by_license = Counter[str](), Counter[str]()
    dropped = Counter[str]()
    for card in cards:
        by_skill[card.source.skill] += card.kept
        by_license[card.source.license] += card.kept
        dropped.update(card.dropped)
    return {
        "available": sum(card.available for card in cards),
        "kept": sum(card.kept for card in cards),
        "without_reply": sum(card.without_reply for card in cards),
        "may_be_missing": sum(len(card.missing) for card in cards),
        "dropped": dict(sorted(dropped.items())),
        "by_skill": dict(sorted(by_skill.items())),
        "by_license": dict(sorted(by_license.items())),
        "sources": [card.as_json() for card in cards],
    }


def card_markdown(card: dict[str, Any]) -> str:
    """The card for people. Text of rows stands in fenced blocks only."""
    lines = ["# Data card", "", f"{card['kept']} of {card['available']} rows kept.", ""]
    lines += ["## Sources", ""]
    lines += table(
        (
            "Source",
            "Skill",
            "Licence",
            "Available",
            "Kept",
            "Without a reply",
            "Dropped",
            "Words in / out (median)",
        ),
        [
            (
                source["name"],
                source["skill"],
                source["license"],
                source["available"],
                source["kept"],
                source["without_reply"],
                counted(source["dropped"]) or "–",
                f"{source['prompt_words'].get('median', 0)} / "
                f"{source['response_words'].get('median', 0)}",
            )
            for source in card["sources"]
        ],
    )
    unread = [
        (source["name"], ", ".join(source["columns_not_read"]))
        for source in card["sources"]
        if source["columns_not_read"]
    ]
    if unread:
        lines += ["", "## Columns not read", "", *table(("Source", "Columns"), unread)]
    lines += ["", "## Skills", "", *table(("Skill", "Rows"), card["by_skill"].items())]
    lines += ["", "## Licences", "", *table(("Licence", "Rows"), card["by_license"].items())]
    lines += ["", "## Provenance", ""]
    lines += [
        f"- **{source['name']}** ({source['origin']['kind']}): "
        f"{cell(source['provenance'] or 'not stated')}"
        for source in card["sources"]
    ]
    lines += ["", "## Samples", ""]
    for source in card["sources"]:
        for row in source["samples"]:
            lines += [f"### {row['id']}", "", *_fenced(row), ""]
    return "\n".join(lines).rstrip() + "\n"


def counted(dropped: Mapping[str, int]) -> str:
    """Rows by the reason they were dropped for, on one line."""
    return ", ".join(f"{n:,} {reason}" for reason, n in sorted(dropped.items()))


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a Markdown table; what is in its cells is text and nothing else."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(cell(value) for value in row) + " |" for row in rows]
    return lines


def cell(value: object) -> str:
    """`value` on one line, with Markdown's signs escaped."""
    text = " ".join(str(value).split())
    return re.sub(r"([|<>&`*_\[\]\\])", r"\\\1", text)


def _fenced(row: dict[str, Any]) -> list[str]:
    text = "\n".join(f"{m['role']}: {m['content']}" for m in row["messages"])
    if len(text) > SAMPLE_CHARACTERS:
        text = text[:SAMPLE_CHARACTERS] + " …"
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}text", text, fence]

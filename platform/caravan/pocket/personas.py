"""Personas that prompts are synthesised for, written for this project."""

from __future__ import annotations

_TRADES = (
    "baker", "sailor", "teacher", "gardener", "weaver", "miller", "doctor", "painter", "farmer",
    "printer", "potter", "fisher", "singer", "carpenter",
)  # fmt: skip
_HABITS = (
    "who counts everything twice",
    "who writes long letters to a sister abroad",
    "who trades goods at the weekly market",
    "who is new in town and asks many questions",
    "who keeps careful lists of all tools",
    "who teaches children after work",
    "who likes short and clear answers",
    "who collects old things from every journey",
)

PERSONAS: tuple[str, ...] = tuple(f"a {trade} {habit}" for trade in _TRADES for habit in _HABITS)
"""112 of them."""

"""One meaning, one colour, on every page; readable on a light and on a dark background."""

from __future__ import annotations

from caravan.registry.states import State

THEME = {  # light and dark, as the browser asks for
    "theme.light.primaryColor": "#0f766e",
    "theme.dark.primaryColor": "#0f9d8a",
    "theme.baseRadius": "medium",
    "theme.showWidgetBorder": "true",
}

STATE = {
    State.PENDING: "#8b94a3",
    State.RUNNING: "#2563eb",
    State.SUCCEEDED: "#15803d",
    State.FAILED: "#c2334d",
    State.CANCELLED: "#a16207",
    State.INTERRUPTED: "#c2570c",
}

MODEL = {"base": "#8b94a3", "sft": "#2f7ed8", "dpo": "#8b5cf6", "rlvr": "#0f9d8a"}
"""Of the models that a recipe makes, in the order in which it makes them."""

KIND = {
    "dataset": "#dbeafe",
    "completions": "#fef3c7",
    "pairs": "#fae8ff",
    "model": "#d1fae5",
    "report": "#f1f5f9",
}
"""Fill behind an artifact of each kind, under dark text."""

SERIES = (
    "#0f9d8a", "#2f7ed8", "#8b5cf6", "#e0862f", "#c2334d",
    "#6b8e23", "#0e7490", "#b5579c", "#8b6b4a", "#64748b",
)  # fmt: skip
"""For categories without a meaning of their own: sources, skills, reasons."""


LINES = {"solid": [1, 0], "dashed": [6, 3], "dotted": [2, 2]}
"""Dashes and gaps in pixels, by the name of the style; they tell curves of one colour apart."""


def model_colour(model: str) -> str:
    return MODEL.get(model, "#64748b")

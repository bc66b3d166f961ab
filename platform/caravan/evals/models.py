"""The models that a recipe makes and evaluates."""

from __future__ import annotations

from collections.abc import Iterable

MODELS = ("base", "sft", "dpo", "rlvr")
"""By the stage that makes them, in the order in which it does."""


def in_order(models: Iterable[str]) -> list[str]:
    """`models`, each once, in the order in which a recipe makes them; others at the end."""
    found = set(models)
    return [m for m in MODELS if m in found] + sorted(found.difference(MODELS))

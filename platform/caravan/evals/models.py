"""The models that a recipe makes and evaluates."""

from __future__ import annotations

import re
from collections.abc import Iterable

MODELS = ("base", "sft", "dpo", "rlvr")
"""By the stage that makes them, in the order in which it does."""


EVALUATE = "evaluate-"


def model_of(node: str) -> str | None:
    """The model that a stage run evaluates: `sft` of `evaluate-sft` and of `evaluate-sft-2`, which
    asks the second part of the tasks; None for a stage run that evaluates none."""
    if not node.startswith(EVALUATE):
        return None
    return re.sub(r"-\d+$", "", node.removeprefix(EVALUATE))


def in_order(models: Iterable[str]) -> list[str]:
    """`models`, each once, in the order in which a recipe makes them; others at the end."""
    found = set(models)
    return [m for m in MODELS if m in found] + sorted(found.difference(MODELS))

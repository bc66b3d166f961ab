"""Recipes being edited: what is wrong with the text, and how it differs from where it began."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import unified_diff
from pathlib import Path

from caravan.errors import RecipeError
from caravan.recipe import Recipe
from caravan.recipe.checks import check_tasks
from caravan.recipe.io import ABSENT, Difference, InvalidRecipeError, diff, parse_recipe
from caravan.recipe.problems import Problem
from caravan_pipelines.actions import refuse_code
from caravan_pipelines.graph import Node

FILE = "line"
"""Stands for the file's name in errors: `line:12` reads well beside a text that has no name."""


@dataclass(frozen=True)
class Draft:
    """A recipe's text, checked."""

    recipe: Recipe | None
    problems: tuple[Problem, ...] = ()
    unfit_tasks: str = ""
    """Why a valid recipe can be planned and not launched: tasks that are not here, or lack
    something, or code of its own."""


def shipped(directory: Path) -> dict[str, Path]:
    """The recipes of a directory by name; the pocket recipe, which runs anywhere, comes first."""
    paths = sorted(directory.glob("*.yaml"), key=lambda path: (path.stem != "pocket", path.stem))
    return {path.stem: path for path in paths}


def check(text: str, directory: Path) -> Draft:
    """The recipe that `text` says, or everything that is wrong with it."""
    if not text.strip():
        return Draft(None, (Problem("", "", "nothing here yet: pick a recipe or paste one"),))
    try:
        recipe = parse_recipe(text, file=FILE, directory=directory)
    except InvalidRecipeError as error:
        return Draft(None, error.problems)
    except RecipeError as error:
        place, found, message = str(error).partition(": ")
        if found and place.startswith(f"{FILE}:"):
            return Draft(None, (Problem(place, "", message),))
        return Draft(None, (Problem("", "", str(error)),))
    try:
        refuse_code(recipe)
        check_tasks(recipe)
    except RecipeError as error:
        return Draft(recipe, unfit_tasks=str(error))
    return Draft(recipe)


def line_of(problem: Problem) -> str:
    return problem.place.removeprefix(f"{FILE}:")


def changed_fields(before: Recipe, after: Recipe) -> list[Difference]:
    return diff(before, after)


def summary(nodes: Sequence[Node]) -> list[str]:
    """The stages in their order, those that run several times once: `respond × 4`."""
    counts = Counter(node.stage for node in nodes)
    return [
        stage.replace("_", "-") + (f" × {count}" if count > 1 else "")
        for stage, count in counts.items()
    ]


def needs(nodes: Sequence[Node]) -> str:
    """What the stage with the largest needs asks for."""
    asked = [resources for node in nodes if (resources := getattr(node.config, "resources", None))]
    largest = max(asked, key=lambda r: (r.gpus * r.nodes, r.memory_gib))
    if not largest.gpus:
        return f"{largest.cpus} CPU cores, {largest.memory_gib:g} GiB of memory, no GPU"
    nodes_text = f" on {largest.nodes} nodes" if largest.nodes > 1 else ""
    return f"{largest.gpus * largest.nodes} GPUs{nodes_text}"


def shown(value: object) -> str:
    return "–" if value is ABSENT else str(value)


def changed_lines(before: str, after: str, name: str) -> str:
    """A unified diff of two recipe texts."""
    return "\n".join(
        unified_diff(
            before.splitlines(), after.splitlines(), f"{name} (shipped)", "edited", lineterm="", n=2
        )
    )

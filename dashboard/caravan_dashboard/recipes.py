"""Recipes being edited: what is wrong with the text, and how it differs from where it began."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import unified_diff
from glob import escape, iglob
from pathlib import Path

from caravan.errors import RecipeError
from caravan.recipe import Recipe
from caravan.recipe.checks import check_tasks
from caravan.recipe.io import ABSENT, Difference, InvalidRecipeError, diff, parse_recipe
from caravan.recipe.paths import is_hub_name, model_directory
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
    absent: tuple[tuple[str, str], ...] = ()
    """Field and value of the paths that lead nowhere from here."""


def shipped(directory: Path) -> dict[str, Path]:
    """The recipes of a directory by name; the pocket recipe, which runs anywhere, comes first."""
    paths = sorted(directory.glob("*.yaml"), key=lambda path: (path.stem != "pocket", path.stem))
    return {path.stem: path for path in paths}


def check(text: str, directory: Path, *, look: bool = False, in_pods: bool = False) -> Draft:
    """The recipe that `text` says, or everything that is wrong with it.

    Args:
        look: Look up the paths that it names, for who may read files here: a launcher.
        in_pods: Its stages do not run on this machine.
    """
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
    absent = tuple(absent_paths(recipe, directory, in_pods=in_pods)) if look else ()
    try:
        refuse_code(recipe)
        check_tasks(recipe)
    except RecipeError as error:
        return Draft(recipe, unfit_tasks=str(error), absent=absent)
    return Draft(recipe, absent=absent)


def absent_paths(
    recipe: Recipe, directory: Path, *, in_pods: bool = False
) -> Iterator[tuple[str, str]]:
    """Files and model directories that the recipe names, with their fields, and that a run from
    `directory` would not find: pods get the files below it, and have the models' volume."""
    for field, value in _texts(recipe.model_dump(mode="json"), ""):
        name = re.sub(r"\[\d+\]$", "", field).rpartition(".")[2]
        if name == "model_name_or_path":
            found = os.path.isdir(model_directory(value, directory))
            is_here = in_pods or found or is_hub_name(value)
        elif name in ("path", "paths") or (name == "personas" and value != "pocket"):
            is_here = _is_here(os.path.expanduser(value), directory, in_pods=in_pods)
        else:
            continue
        if not is_here:
            yield field, value


def _is_here(path: str, directory: Path, *, in_pods: bool) -> bool:
    is_below = os.path.normpath(directory / path).startswith(f"{directory}{os.sep}")
    if in_pods and not is_below:
        return False
    if escape(path) != path and not is_below:
        return True  # a pattern that may lead through the whole disk; the run says what it finds
    found = os.path.exists(directory / path)
    return found or any(iglob(path, root_dir=directory, recursive=True))


def _texts(value: object, field: str) -> Iterator[tuple[str, str]]:
    """Every text in a document, with the field that it stands in."""
    if isinstance(value, str):
        yield field, value
    elif isinstance(value, Mapping):
        for name, part in value.items():
            yield from _texts(part, f"{field}.{name}" if field else name)
    elif isinstance(value, list):
        for number, part in enumerate(value):
            yield from _texts(part, f"{field}[{number}]")


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
        unified_diff(before.splitlines(), after.splitlines(), name, "edited", lineterm="", n=2)
    )

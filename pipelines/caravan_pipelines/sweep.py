"""Sweeps: the runs of one recipe with every combination of some values."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import yaml

from caravan.errors import RecipeError
from caravan.recipe import Recipe
from caravan.recipe.io import recipe_digest
from caravan.registry import SWEEP_TAG, TAG_CHARACTERS


@dataclass(frozen=True)
class Member:
    """One run of a sweep."""

    values: tuple[str, ...]
    """What sets it apart: `dpo.beta=1`."""
    recipe: Recipe

    @property
    def tags(self) -> tuple[str, ...]:
        """Its values, of a long one the beginning."""
        return tuple(value[:TAG_CHARACTERS] for value in self.values)


def sweep_members(
    load: Callable[[Sequence[str]], Recipe], axes: Sequence[str], overrides: Sequence[str]
) -> list[Member]:
    """The recipe that `load` gives, with each combination of the values of `axes`, such as
    `dpo.beta=1,2,5`.

    Raises:
        RecipeError: an axis has no values, a recipe with one of them is not valid, or two
            combinations give the same recipe.
    """
    fields = [axis.partition("=")[0].strip() for axis in axes]
    for name in fields:
        if fields.count(name) > 1:
            raise RecipeError(
                f"--over {name} is given {fields.count(name)} times; give its values in one: "
                f"--over {name}=1,2,5"
            )
    combinations = list(product(*(_values(axis) for axis in axes)))
    members = [Member(values, load([*overrides, *values])) for values in combinations]
    first: dict[str, Member] = {}
    for member in members:
        other = first.setdefault(recipe_digest(member.recipe), member)
        if other is not member:
            raise RecipeError(
                f"{' '.join(other.values)} and {' '.join(member.values)} give the same recipe; "
                "leave one out"
            )
    return members


def _values(axis: str) -> list[str]:
    """The field with each value, as it is written; a list, or a text in quotes, is one value."""
    field, _, values = axis.partition("=")
    try:
        found = _items(f"[{values}]")
    except (yaml.YAMLError, RecursionError):
        found = []
    if not found or len(set(found)) != len(found):
        raise RecipeError(
            f"--over {axis:.80}: write a field and different values, dpo.beta=1,2,5 or "
            "'rlvr.skills=[math],[math, chat]'"
        )
    return [f"{field.strip()}={value}" for value in found]


def _items(text: str) -> list[str]:
    """The items of a YAML list, as they are written; none of what is no list.

    Raises:
        YAMLError: it is no YAML.
    """
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    items = node.value if isinstance(node, yaml.SequenceNode) else []
    return [text[item.start_mark.index : item.end_mark.index] for item in items]


def new_tag() -> str:
    """A tag that the runs of a new sweep have in common."""
    return f"{SWEEP_TAG}{uuid.uuid4().hex[:6]}"

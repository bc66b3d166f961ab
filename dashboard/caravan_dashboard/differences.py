"""Where the recipes of runs differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from caravan.recipe.io import ABSENT, differing_fields
from caravan.recipe.yaml import path_parts
from caravan.registry import RunRow

NOT_COMPARED = ("name", "description", "seed")
"""What stands beside the differences anyway."""

Fields = Mapping[str, object]


def between(recipes: Sequence[Mapping[str, object]], stage: str = "") -> dict[str, list[object]]:
    """The fields in which recipes differ, those of the stage first, with the value of each."""
    fields = differing_fields(recipes)
    paths = sorted(fields, key=lambda path: not path.startswith(f"{stage}."))
    return {path: fields[path] for path in paths if path not in NOT_COMPARED}


def by_run(runs: Sequence[RunRow]) -> dict[str, Fields]:
    """Of each run, its values of the fields in which the runs of the same recipe differ."""
    found: dict[str, Fields] = {}
    for name in dict.fromkeys(run.name for run in runs):
        alike = [run for run in runs if run.name == name]
        fields = between([run.recipe for run in alike])
        for i, run in enumerate(alike):
            found[run.id] = {path: values[i] for path, values in fields.items()}
    return found


def value_at(recipe: object, path: str) -> object:
    """The value of a field, whatever its case: `dpo.beta`, `evaluate.tasks[math].limit`."""
    found = recipe
    for key in path_parts(path.lower()):
        if isinstance(found, list):
            found = dict(enumerate(found)) | {
                item.get("name", item.get("source")): item
                for item in found if isinstance(item, dict)
            }  # fmt: skip
        if not isinstance(found, dict):
            return ABSENT
        found = {str(name).lower(): value for name, value in found.items()}.get(key, ABSENT)
    return found

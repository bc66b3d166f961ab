"""Recipes on disk: loading with errors a user can act on, comparing, and the schema for editors.

    recipe = load_recipe(Path("pipelines/recipes/pocket.yaml"), ["rlvr.beta=0.01"])

A recipe may begin with `extends: other.yaml`: its mappings are merged into those of the other
recipe, its lists and values replace them, and a section set to null is left out.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from caravan.errors import RecipeError
from caravan.recipe import Recipe
from caravan.recipe.checks import doubts
from caravan.recipe.problems import Problem, misread_booleans, problems_of
from caravan.recipe.verifiers import unfit
from caravan.recipe.yaml import (
    Document,
    apply_override,
    dotted,
    parse_document,
    read_document,
)

logger = logging.getLogger(__name__)


class InvalidRecipeError(RecipeError):
    """A recipe that does not validate, with everything that is wrong with it."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in the file `path`, with `overrides` such as `rlvr.learning_rate=1e-6`.

    What it may say and probably does not mean is logged as a warning.

    Raises:
        RecipeError: the file is not a valid recipe; the message names file, line, field and value.
    """
    recipe = _validated(read_document(Path(path)), overrides, code_in=Path(path).parent)
    for doubt in doubts(recipe):
        logger.warning("%s: %s", path, doubt)
    return recipe


def parse_recipe(
    text: str,
    overrides: Sequence[str] = (),
    *,
    file: str = "recipe",
    directory: Path | None = None,
) -> Recipe:
    """As `load_recipe`, of YAML (or JSON) text. `file` is its name in errors; `directory` is where
    `extends` looks."""
    return _validated(parse_document(text, file, directory), overrides)


def recipe_from_data(data: Mapping[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from plain data, as the registry keeps it."""
    return _validated(Document(dict(data)), overrides)


def _validated(document: Document, overrides: Sequence[str], code_in: Path | None = None) -> Recipe:
    """Args:
    code_in: Where verifiers of one's own are looked for; None does not look for them.
    """
    for override in overrides:
        document = apply_override(document, override)
    try:
        recipe = Recipe.model_validate(document.data)
    except ValidationError as error:
        raise InvalidRecipeError(problems_of(error, document)) from error
    found = list(misread_booleans(document.data, recipe, document))
    if code_in is not None:
        for name, told in unfit(recipe.verifiers, code_in):
            path = ("verifiers", name)
            found.append(Problem(document.place(path), dotted(path), told))
    if found:
        raise InvalidRecipeError(found)
    return recipe


def canonical_json(recipe: Recipe) -> str:
    """Every field, defaults included, in one fixed form: equal recipes give equal text."""
    data = recipe.model_dump(mode="json")
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def recipe_digest(recipe: Recipe) -> str:
    """SHA-256 of the canonical form, in hexadecimal."""
    return hashlib.sha256(canonical_json(recipe).encode()).hexdigest()


class _Absent:
    def __repr__(self) -> str:
        return "(absent)"


ABSENT = _Absent()
"""Stands in a difference for a value that one side does not have."""


class Difference(NamedTuple):
    """A field in which two recipes differ."""

    path: str
    old: Any
    new: Any


def diff(old: Recipe, new: Recipe) -> list[Difference]:
    """Where `new` differs from `old`, field by field. Items of lists are matched by their name."""
    return diff_documents(old.model_dump(mode="json"), new.model_dump(mode="json"))


def diff_documents(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Difference]:
    """As `diff`, of recipes as the registry has them."""
    return [Difference(path, *values) for path, values in _differing([old, new], "")]


def differing_fields(recipes: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The fields in which recipes, as the registry has them, differ, with the value of each."""
    return dict(_differing(recipes, ""))


def shown_value(value: object) -> str:
    """A value of a recipe in a cell; of a long one both ends, as paths differ in the last."""
    if value is None or value is ABSENT:
        return "–"
    text = f"{value:.12g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 40 else f"{text[:20]} … {text[-20:]}"


def _differing(values: Sequence[Any], path: str) -> Iterator[tuple[str, list[Any]]]:
    """The fields below `path` in which its values differ, with those of each. A section that some
    of them lack is a field too, besides those in it in which the others differ."""
    if all(isinstance(value, list) for value in values):
        values = _by_name(values)
        pattern = "{path}[{key}]"
    else:
        pattern = "{path}.{key}" if path else "{key}"
    if all(isinstance(value, Mapping) for value in values):
        for key in dict.fromkeys(key for value in values for key in value):
            inner = pattern.format(path=path, key=key)
            yield from _differing([value.get(key, ABSENT) for value in values], inner)
    elif any(value != values[0] for value in values):
        yield path, list(values)
        sections = [value for value in values if isinstance(value, Mapping)]
        for inner, found in _differing(sections, path) if len(sections) > 1 else ():
            left = iter(found)
            yield inner, [next(left) if isinstance(v, Mapping) else ABSENT for v in values]


def _by_name(lists: Sequence[list[Any]]) -> list[dict[Any, Any]]:
    """The lists as mappings: by name or source where every item has one, else by position."""
    for key in ("name", "source"):
        if all(isinstance(item, dict) and key in item for items in lists for item in items):
            return [{item[key]: item for item in items} for items in lists]
    return [dict(enumerate(items)) for items in lists]


SCHEMA_FILE = "recipe.schema.json"
"""Beside the recipes; each begins with `# yaml-language-server: $schema=recipe.schema.json`."""


def json_schema() -> dict[str, Any]:
    """JSON schema of a recipe file, for editors and forms. Fields' docstrings describe them.

    A file that extends another gives only what differs: there no key is required, at any depth.
    """
    whole = Recipe.model_json_schema(ref_template="#/$defs/{model}")
    definitions = whole.pop("$defs")
    _add_names(definitions)
    changes = _without_required({**whole, "title": "Changes to a recipe"})
    changes["properties"] = {
        "extends": {"type": "string", "description": "The recipe file that this one changes."},
        **changes["properties"],
    }
    partial = {f"{name}{_CHANGES}": _without_required(d) for name, d in definitions.items()}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "if": {"required": ["extends"]},
        "then": changes,
        "else": whole,
        "$defs": definitions | partial,
    }


def _add_names(definitions: dict[str, Any]) -> None:
    """Give the fields that name something of this project what there is to name, as examples: a
    name that is not here may be one of the recipe's own, or of a task that can only be planned."""
    from caravan.evals.tasks import TASKS
    from caravan.pocket.sources import GENERATORS
    from caravan.pocket.teacher import PROGRAMS
    from caravan.verifiers import VERIFIERS

    named: tuple[tuple[str, str, Iterable[str]], ...] = (
        ("EvalTask", "task", TASKS),
        ("EvalTask", "verifier", VERIFIERS),
        ("Source", "verifier", VERIFIERS),
        ("SynthesisTask", "verifier", VERIFIERS),
        ("GeneratedSource", "generator", GENERATORS),
        ("ProgramEngineConfig", "program", PROGRAMS),
    )
    for owner, field, names in named:
        definitions[owner]["properties"][field]["examples"] = list(names)


_CHANGES = "-changes"


def _without_required(schema: Any) -> Any:
    """`schema` with nothing required, and so all that it refers to; items of lists stay whole."""
    if isinstance(schema, list):
        return [_without_required(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    changed: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "$ref":
            changed[key] = value + _CHANGES
        elif key == "oneOf":  # a union: `kind` may be left to the recipe that is changed
            changed["anyOf"] = _without_required(value)
        elif key in ("items", "prefixItems"):
            changed[key] = value
        elif key not in ("required", "discriminator"):
            changed[key] = _without_required(value)
    return changed


def schema_text() -> str:
    """`json_schema` as it is kept in `SCHEMA_FILE`."""
    return json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"

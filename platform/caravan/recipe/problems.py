"""What is wrong with a recipe, in words: from pydantic's errors to where, what, and what to do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from caravan.errors import some
from caravan.recipe import DPOLoss, Recipe
from caravan.recipe.checks import suggest
from caravan.recipe.losses import TAG, foreign_option, options, tags
from caravan.recipe.yaml import Document, FieldPath, dotted


class Problem(NamedTuple):
    """One thing to put right."""

    place: str
    """`file:line` or the override it comes from; empty when it is nowhere written."""
    path: str
    """Dotted path of the field; empty for the recipe as a whole."""
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in self if part)


def problems_of(error: ValidationError, document: Document) -> list[Problem]:
    """Every error of `error`, in the order of the recipe."""
    found: list[Problem] = []
    every = error.errors(include_url=False)
    for details in every:
        path, owner = _resolve(details["loc"])
        message = details["msg"].removeprefix("Value error, ")
        if details["type"] == "too_short" and _has_inner(details["loc"], every):
            continue  # only because its items are wrong, which is said already
        if details["type"] == "value_error" and not path:  # the checks across sections
            found += [_with_path(line, document) for line in message.splitlines()]
            continue
        if details["type"] == "union_tag_invalid":
            path = (*path, _tag_key(owner))
        text = _message(details["type"], message, path, owner, details["input"])
        found.append(Problem(document.place(path), dotted(path) if path else "", text))
    return found


def _has_inner(loc: FieldPath, errors: Sequence[ErrorDetails]) -> bool:
    return any(e["loc"][: len(loc)] == loc and e["loc"] != loc for e in errors)


def misread_booleans(data: Any, recipe: Recipe, document: Document) -> Iterator[Problem]:
    """YAML's `yes`, `on` and `true` where a number is meant: pydantic would read them as 1."""
    pending: list[tuple[FieldPath, Any, Any]] = [((), data, recipe.model_dump())]
    while pending:
        path, raw, value = pending.pop()
        if isinstance(raw, bool) and isinstance(value, int | float) and not isinstance(value, bool):
            yield Problem(
                document.place(path), dotted(path), f"expected a number; got {_shown(raw)}"
            )
        elif isinstance(raw, dict) and isinstance(value, dict):
            pending += [((*path, k), raw[k], value[k]) for k in raw if k in value]
        elif isinstance(raw, list) and isinstance(value, tuple) and len(raw) == len(value):
            pending += [((*path, i), raw[i], value[i]) for i in range(len(raw))]


def _message(kind: str, message: str, path: FieldPath, owner: Any, value: object) -> str:
    if kind == "extra_forbidden":
        key = str(path[-1])
        if foreign := foreign_option(key, owner, DPOLoss):
            return foreign
        return f"unknown key {key!r}{_elsewhere(path) or _suggest_key(key, owner)}"
    if kind == "missing":
        return "is missing; it has no default"
    if kind == "value_error":
        return message
    if kind == "union_tag_not_found":
        return f"needs a kind: {', '.join(_kinds(owner))}"
    if kind == "union_tag_invalid":
        key = _tag_key(owner)
        given = value.get(key) if isinstance(value, dict) else value
        return f"unknown {key} {given!r}{suggest(str(given), _kinds(owner))}"
    expected = _EXPECTED.get(kind) or message.removeprefix("Input should be ")
    hint = "; put it in quotes" if kind == "string_type" and _is_plain(value) else ""
    return f"expected {expected}; got {_shown(value)}{hint}"


_EXPECTED = {
    "float_parsing": "a number",
    "float_type": "a number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "string_type": "text",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "tuple_type": "a list",
    "list_type": "a list",
    "too_short": "at least one item",
    "string_pattern_mismatch": (
        "a name of lower-case letters, digits, '.', '_' and '-' that starts with a letter or digit"
    ),
}
"""Expectations by pydantic's type of error, where its own words are not a recipe author's."""


def _is_plain(value: object) -> bool:
    """Whether YAML made something else of what was perhaps meant as text: a number, a date."""
    return value is not None and not isinstance(value, str | dict | list)


def _shown(value: object) -> str:
    names = {str: "text", int: "a number", float: "a number", dict: "a mapping", list: "a list"}
    if value is None:
        return "nothing"
    text = repr(value) if len(repr(value)) <= 80 else repr(value)[:77] + "..."
    return f"{text} ({names.get(type(value), type(value).__name__)})"


def _with_path(line: str, document: Document) -> Problem:
    """A line of `checks.problems`: `dotted[0].path: message`."""
    path_text, _, message = line.partition(": ")
    parts = path_text.replace("[", ".").replace("]", "").split(".")
    path = tuple(int(part) if part.isdecimal() else part for part in parts)
    return Problem(document.place(path), path_text, message)


def _suggest_key(key: str, owner: Any) -> str:
    models = [m for m in _members(owner) if isinstance(m, type) and issubclass(m, BaseModel)]
    return suggest(key, _keys(models[0])) if models else ""


def _elsewhere(path: FieldPath) -> str:
    """Where a key that its section does not know has its place: further in, or in another kind."""
    section: Any = Recipe
    for part in path[:-1]:
        section = _step(_members(section), part)
    homes = list(dict.fromkeys(_homes(str(path[-1]), section, path[:-1])))
    return f"; it belongs in {some(homes)}" if homes else ""


def _homes(key: str, section: Any, path: FieldPath) -> Iterator[str]:
    """The sections, `section` and those in it, that have the key."""
    for member in _members(section):
        if not (isinstance(member, type) and issubclass(member, BaseModel)):
            continue
        if key in member.model_fields:
            kinds = [f"of kind {tag}" for tag in _tags(member) if "kind" in member.model_fields]
            yield " ".join([dotted(path), *kinds])
        for name, field in member.model_fields.items():
            beside = _members(field.annotation) == _members(DPOLoss)  # its options, in the file
            yield from _homes(key, field.annotation, path if beside else (*path, name))


def _keys(model: type[BaseModel]) -> list[str]:
    """What may be written in a section: its fields, and the options of its loss."""
    fields = [name for name in model.model_fields if name != "loss"]
    return fields + list(options(DPOLoss)) if len(fields) < len(model.model_fields) else fields


def _resolve(loc: FieldPath) -> tuple[FieldPath, Any]:
    """The path without the tags of unions, and the type that holds (or misses) its last part."""
    current: Any = Recipe
    owner: Any = Recipe
    path: list[str | int] = []
    for part in loc:
        members = _members(current)
        tagged = {tag: m for m in members for tag in _tags(m)}
        if len(tagged) > 1 and part in tagged:
            current = owner = tagged[str(part)]
            continue
        if part == "[key]":
            continue
        owner = current
        current = _step(members, part)
        if _members(current) != _members(DPOLoss):  # the options of a loss are written beside it
            path.append(part)
    at_union = len([m for m in _members(current) if _tags(m)]) > 1
    return tuple(path), current if at_union else owner


def _step(members: list[Any], part: str | int) -> Any:
    """The type of `part` of a value whose type is one of `members`."""
    for member in members:
        arguments = [a for a in get_args(member) if a is not Ellipsis]
        if isinstance(member, type) and issubclass(member, BaseModel):
            if part in member.model_fields:
                return member.model_fields[str(part)].annotation
        elif get_origin(member) in (tuple, list, dict) and arguments:
            return arguments[-1]
    return Any


def _members(annotation: Any) -> list[Any]:
    """The alternatives of a type, `Annotated` and `None` left out."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [m for arg in get_args(annotation) for m in _members(arg)]
    return [] if annotation is type(None) else [annotation]


def _tags(member: Any) -> tuple[str, ...]:
    """The values of `kind` or `loss_type` that choose `member` of a union."""
    if not (isinstance(member, type) and issubclass(member, BaseModel)):
        return ()
    field = member.model_fields.get("kind")
    return (str(field.default),) if field is not None else tags(member)


def _tag_key(union: Any) -> str:
    return TAG if any(tags(member) for member in _members(union)) else "kind"


def _kinds(annotation: Any) -> list[str]:
    return [tag for member in _members(annotation) for tag in _tags(member)]

"""What is wrong with a recipe, in words: from pydantic's errors to where, what, and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from caravan.recipe import Recipe
from caravan.recipe_checks import suggest
from caravan.recipe_yaml import Document, dotted


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
    for details in error.errors(include_url=False):
        path, owner = _resolve(details["loc"])
        message = details["msg"].removeprefix("Value error, ")
        if details["type"] == "value_error" and not path:  # the checks across sections
            found += [_with_path(line, document) for line in message.splitlines()]
        else:
            text = _message(details["type"], message, path, owner, details["input"])
            place = document.place(path)
            found.append(Problem(place, dotted(path) if path else "", text))
    return found


def misread_booleans(data: Any, recipe: Recipe, document: Document) -> Iterator[Problem]:
    """YAML's `yes`, `on` and `true` where a number is meant: pydantic would read them as 1."""
    pending: list[tuple[tuple[str | int, ...], Any, Any]] = [((), data, recipe.model_dump())]
    while pending:
        path, raw, value = pending.pop()
        if isinstance(raw, bool) and isinstance(value, int | float) and not isinstance(value, bool):
            yield Problem(document.place(path), dotted(path), f"expected a number, got {raw!r}")
        elif isinstance(raw, dict) and isinstance(value, dict):
            pending += [((*path, k), raw[k], value[k]) for k in raw if k in value]
        elif isinstance(raw, list) and isinstance(value, tuple) and len(raw) == len(value):
            pending += [((*path, i), raw[i], value[i]) for i in range(len(raw))]


def _message(
    kind: str, message: str, path: tuple[str | int, ...], owner: Any, value: object
) -> str:
    if kind == "extra_forbidden":
        return f"unknown key {path[-1]!r}{_suggest_key(str(path[-1]), owner)}"
    if kind == "missing":
        return "is missing; it has no default"
    if kind == "value_error":
        return message
    if kind == "union_tag_not_found":
        return f"needs a kind: {', '.join(_kinds(owner))}"
    if kind == "union_tag_invalid":
        given = value.get("kind") if isinstance(value, dict) else value
        return f"unknown kind {given!r}{suggest(str(given), _kinds(owner))}"
    expected = message.removeprefix("Input should be ").replace("Input should ", "something to ")
    expected = expected.replace("a valid dictionary or instance of ", "a mapping, for ")
    shown = repr(value) if len(repr(value)) <= 80 else repr(value)[:77] + "..."
    return f"expected {expected}; got {shown} ({_type_name(value)})"


def _type_name(value: object) -> str:
    names = {"str": "text", "dict": "a mapping", "list": "a list", "NoneType": "nothing"}
    return names.get(type(value).__name__, type(value).__name__)


def _with_path(line: str, document: Document) -> Problem:
    """A line of `recipe_checks.problems`: `dotted[0].path: message`."""
    path_text, _, message = line.partition(": ")
    parts = path_text.replace("[", ".").replace("]", "").split(".")
    path = tuple(int(part) if part.isdecimal() else part for part in parts)
    return Problem(document.place(path), path_text, message)


def _suggest_key(key: str, owner: Any) -> str:
    models = [m for m in _members(owner) if isinstance(m, type) and issubclass(m, BaseModel)]
    return suggest(key, models[0].model_fields) if models else ""


def _resolve(loc: tuple[str | int, ...]) -> tuple[tuple[str | int, ...], Any]:
    """The path without the tags of unions, and the type that holds (or misses) its last part."""
    current: Any = Recipe
    owner: Any = Recipe
    path: list[str | int] = []
    for part in loc:
        members = _members(current)
        tagged = {_kind(m): m for m in members if _kind(m)}
        if len(tagged) > 1 and part in tagged:
            current = owner = tagged[str(part)]
            continue
        if part == "[key]":
            continue
        owner = current
        current = _step(members, part)
        path.append(part)
    at_union = len([m for m in _members(current) if _kind(m)]) > 1
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


def _kind(member: Any) -> str:
    if not (isinstance(member, type) and issubclass(member, BaseModel)):
        return ""
    field = member.model_fields.get("kind")
    return str(field.default) if field is not None else ""


def _kinds(annotation: Any) -> list[str]:
    return [_kind(m) for m in _members(annotation) if _kind(m)]

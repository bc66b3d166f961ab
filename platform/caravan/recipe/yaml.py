"""Reading the YAML of a recipe: duplicate keys refused, `extends` and overrides merged, and for
each value the place it was written, so that an error can name the line.

YAML 1.1 loads `5e-7` (no dot) as text; pydantic makes it a number where one is expected.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError
from yaml.reader import ReaderError

from caravan.errors import RecipeError
from caravan.recipe import DPOLoss
from caravan.recipe.losses import TAG, without_options

FieldPath = tuple[str | int, ...]
"""Where a value is: keys and list positions from the top."""

ALIASES = {"max_seq_length": "max_length"}
"""Names that users of other tools know, and ours."""

MAX_DEPTH = 40
MAX_VALUES = 100_000
"""Of a recipe's text, with its aliases written out."""


class _Loader(yaml.SafeLoader):
    """Tells the line of a value that is not what its form or tag promises: 2026-99-99."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError) as error:
            kind = node.tag.rpartition(":")[2]
            problem = f"{node.value!r:.40} is no {kind}; correct it, or quote it if it is text"
            raise ConstructorError(None, None, problem, node.start_mark) from error


@dataclass
class Document:
    """The data of a recipe before validation, and where each part of it was written."""

    data: dict[str, Any]
    places: dict[FieldPath, str] = field(default_factory=dict)
    """`file:line`, or the override, of the value at a path."""

    def place(self, path: FieldPath) -> str:
        """Of the value at `path`, else of the first thing in it, else of the nearest around it."""
        if path and path not in self.places:
            inside = (p for p in self.places if p[: len(path)] == path)
            path = next(inside, path)
        while path and path not in self.places:
            path = path[:-1]
        return self.places.get(path, "")


def read_document(path: Path) -> Document:
    """The recipe at `path`, with what it extends merged in.

    Raises:
        RecipeError: a file cannot be read or is not a YAML mapping, or `extends` goes round.
    """
    return _read_chain(path, seen=())


def parse_document(text: str, file: str, directory: Path | None = None) -> Document:
    """As `read_document`, of `text`; `extends` is looked up in `directory`, and nowhere else: who
    sends a text may not be one who may read files here."""
    document = _parse(text, file)
    name = document.data.get("extends")
    if directory is not None and isinstance(name, str) and not _lies_in(directory, name):
        where = document.place(("extends",))
        raise RecipeError(f"{where}: extends: {name!r} is not one of the recipes there")
    return _extended(document, file, directory, seen=())


def _lies_in(directory: Path, name: str) -> bool:
    return (directory / name).resolve().is_relative_to(directory.resolve())


def apply_override(document: Document, override: str) -> Document:
    """`document` with `dotted.path=value`; the value is YAML. An item of a list is named by its
    position or its name: `evaluate.tasks.gsm8k.limit=100`, `evaluate.tasks[0].limit=100`; one with
    dots in brackets."""
    dotted_path, equals, text = override.partition("=")
    if not equals or not dotted_path.strip():
        raise RecipeError(f"{override!r}: an override is dotted.path=value, such as rlvr.beta=0.1")
    shown = repr(override if len(override) <= 80 else f"{override[:77]}...")
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is not None:
            _visit(node, (), shown, {})
        value = None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, RecursionError) as error:
        raise RecipeError(f"{shown}: the value is not YAML: {_problem(error)}") from error
    finally:
        if loader is not None:
            loader.dispose()
    parts = _parts(dotted_path.strip(), shown)
    path = _positions(document.data, parts)
    data = _with_value(document.data, path, _with_own_names(value), override, ())
    kept = {at: place for at, place in document.places.items() if at[: len(path)] != path}
    return Document(data, kept | {path: shown})


def _positions(data: Any, path: FieldPath) -> FieldPath:
    """`path` with the names of list items replaced by their positions, where there are such."""
    found: list[str | int] = []
    for part in path:
        if isinstance(data, list):
            position = _position(data, part)
            found.append(part if position is None else position)
            data = None if position is None else data[position]
        else:
            found.append(str(part))
            data = data.get(str(part)) if isinstance(data, dict) else None
    return tuple(found)


_PATH = re.compile(r"[^.\[\]]+(?:\.[^.\[\]]+|\[[^\[\]]+\])*")


def _parts(dotted_path: str, override: str) -> FieldPath:
    """`evaluate.tasks[0].limit`, as errors write it, `evaluate.tasks[math].limit`, as differences
    do, or `evaluate.tasks.math.limit`."""
    if not _PATH.fullmatch(dotted_path):
        raise RecipeError(
            f"{override}: {dotted_path!r} is no path; write names and positions, such as "
            "evaluate.tasks[0].limit=100"
        )
    return tuple(map(_segment, path_parts(dotted_path)))


def path_parts(path: str) -> list[str]:
    """The names and positions of `evaluate.tasks[math].limit`; one in brackets may have dots."""
    found = re.findall(r"\[([^\]]+)\]|([^.\[\]]+)", path)
    return [in_brackets or plain for in_brackets, plain in found]


def _segment(part: str) -> str | int:
    return int(part) if part.isdecimal() else ALIASES.get(part, part)


def _with_value(old: Any, path: FieldPath, value: Any, override: str, done: FieldPath) -> Any:
    """A copy of `old` in which `path` holds `value`."""
    if not path:
        return value
    key, rest = path[0], path[1:]
    if isinstance(old, list):
        if not isinstance(key, int) or key >= len(old):
            raise RecipeError(
                f"{override!r}: {dotted(done)} is a list of {len(old)} without {key!r}; give the "
                f"name of an item, or a position from 0 to {len(old) - 1}"
            )
        new = list(old)
        new[key] = _with_value(old[key], rest, value, override, (*done, key))
        return new
    if old is None:
        old = {}
    if not isinstance(old, dict):
        raise RecipeError(f"{override!r}: {dotted(done)} is {old!r}, it has nothing called {key!r}")
    if key == "kind" and not rest and old.get("kind") != value:
        return {"kind": value}  # the options of another kind do not carry over
    if key == TAG and not rest:
        old = without_options(old, value, DPOLoss)
    return {**old, key: _with_value(old.get(key), rest, value, override, (*done, key))}


def _position(items: list[Any], key: str | int) -> int | None:
    if isinstance(key, int):
        return key if key < len(items) else None
    named = [i for i, item in enumerate(items) if isinstance(item, dict) and key in _names(item)]
    return named[0] if len(named) == 1 else None


def _names(item: dict[str, Any]) -> tuple[Any, Any]:
    return item.get("name"), item.get("source")


def dotted(path: Sequence[str | int]) -> str:
    """`evaluate.tasks[3].limit`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text or "the recipe"


def _read_chain(path: Path, seen: tuple[Path, ...]) -> Document:
    resolved = path.resolve()
    if resolved in seen:
        chain = " -> ".join(p.name for p in (*seen, resolved))
        raise RecipeError(f"{path}: extends goes round in a circle: {chain}")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise RecipeError(f"{path}: there is no such recipe file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from error
    return _extended(_parse(text, str(path)), str(path), path.parent, (*seen, resolved))


def _extended(
    document: Document, file: str, directory: Path | None, seen: tuple[Path, ...]
) -> Document:
    if "extends" not in document.data:
        return document
    name = document.data.pop("extends")
    where = document.place(("extends",))
    if not isinstance(name, str):
        raise RecipeError(f"{where}: extends: expected the file name of a recipe, got {name!r}")
    if directory is None:
        raise RecipeError(f"{where}: extends: {file} is in no directory to look for {name!r} in")
    if not (directory / name).is_file():
        raise RecipeError(f"{where}: extends: there is no file {directory / name}")
    base = _read_chain(directory / name, seen)
    return Document(merge(base.data, document.data), base.places | document.places)


def merge(base: Any, changes: Any) -> Any:
    """`base` with `changes`: mappings merge key by key, anything else replaces. A mapping of
    another `kind` replaces too."""
    if not isinstance(base, dict) or not isinstance(changes, dict):
        return changes
    if "kind" in changes and changes["kind"] != base.get("kind", changes["kind"]):
        return changes
    if TAG in changes:
        base = without_options(base, changes[TAG], DPOLoss)
    merged = dict(base)
    for key, value in changes.items():
        merged[key] = merge(base[key], value) if key in base else value
    return merged


def _parse(text: str, file: str) -> Document:
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise RecipeError(f"{file}: expected a mapping of sections (name, base_model, ...)")
        places: dict[FieldPath, str] = {}
        _visit(node, (), file, places)
        data = _with_own_names(loader.construct_document(node))
    except (yaml.YAMLError, RecursionError) as error:
        raise RecipeError(
            f"{file}{_line(error, text, loader)}: not YAML: {_problem(error)}"
        ) from error
    finally:
        if loader is not None:
            loader.dispose()
    return Document(data, places)


def _problem(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "too deeply nested for a recipe"
    if isinstance(error, ReaderError):
        return f"the character {chr(error.character)!r} is not allowed; remove it"
    return getattr(error, "problem", None) or str(error)


def _line(error: Exception, text: str, loader: _Loader | None) -> str:
    """`:line` of what YAML could not read, where it is known."""
    if isinstance(error, ReaderError):
        return f":{text[: error.position].count(chr(10)) + 1}"
    mark = getattr(error, "problem_mark", None)
    if mark is None and isinstance(error, RecursionError) and loader is not None:
        mark = loader.get_mark()
    return f":{mark.line + 1}" if mark is not None else ""


def _visit(node: yaml.Node, path: FieldPath, file: str, places: dict[FieldPath, str]) -> None:
    """Note the line of every value, and refuse a key that is given twice.

    Aliases are followed, so a document of a few lines may be endless, or larger than memory.
    """
    if len(path) > MAX_DEPTH or len(places) > MAX_VALUES:
        raise RecipeError(
            f"{file}:{node.start_mark.line + 1}: too deep or too large for a recipe; "
            "does an alias (*name) refer to what it is in?"
        )
    if isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            places[(*path, i)] = f"{file}:{item.start_mark.line + 1}"
            _visit(item, (*path, i), file, places)
    elif isinstance(node, yaml.MappingNode):
        first_line: dict[str, int] = {}
        for key_node, value in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                raise RecipeError(f"{file}:{line}: {dotted(path)}: a key must be plain text")
            if key_node.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
                raise RecipeError(
                    f"{file}:{line}: {dotted(path)}: the key {key_node.value!r:.40} is read as "
                    f"{key_node.tag.rpartition(':')[2]}; a key must be text, quote it"
                )
            key = str(ALIASES.get(key_node.value, key_node.value))
            if key in first_line:
                raise RecipeError(
                    f"{file}:{line}: {dotted((*path, key))} is given twice, first on line "
                    f"{first_line[key]}; keep one"
                )
            first_line[key] = line
            places[(*path, key)] = f"{file}:{line}"
            _visit(value, (*path, key), file, places)


def _with_own_names(data: Any) -> Any:
    if isinstance(data, dict):
        return {ALIASES.get(key, key): _with_own_names(value) for key, value in data.items()}
    if isinstance(data, list):
        return [_with_own_names(item) for item in data]
    return data

"""Verifiers of one's own: functions in Python files that a recipe names.

    verifiers: {polite: polite.py, terse: "style.py:is_terse"}

A file is looked at here, never run: what reads a recipe does not run its code.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

FUNCTION = "verify"
"""What is called where the recipe names a file alone."""
ARGUMENTS = "(completion, ground_truth)"

_FORM = re.compile(r"[^:]+\.py(?::[A-Za-z_]\w*)?")


def _is_file_and_function(named: str) -> str:
    if not _FORM.fullmatch(named):
        raise ValueError(
            f"expected a Python file, and where it is not {FUNCTION!r} its function: polite.py or "
            f"polite.py:is_polite; got {named!r}"
        )
    return named


VerifierFunction = Annotated[str, AfterValidator(_is_file_and_function)]


def file_and_function(named: str, recipe_dir: Path) -> tuple[Path, str]:
    """What `polite.py:is_polite` names; `~` is the home directory."""
    path, _, function = named.partition(":")
    return recipe_dir / Path(path).expanduser(), function or FUNCTION


def verifier_files(verifiers: Mapping[str, str], recipe_dir: Path) -> list[Path]:
    return [file_and_function(named, recipe_dir)[0] for named in verifiers.values()]


def unfit(verifiers: Mapping[str, str], recipe_dir: Path) -> Iterator[tuple[str, str]]:
    """(name, what is wrong) of every verifier whose function is not there to be called."""
    for name, named in verifiers.items():
        path, function = file_and_function(named, recipe_dir)
        try:
            tree = ast.parse(path.read_bytes(), filename=str(path))
        except OSError as error:
            yield name, f"cannot read {path}: {error.strerror}; correct the path or the file"
        except (SyntaxError, ValueError) as error:
            yield name, f"{path} is not Python: {error}; correct it"
        else:
            if told := _lacks(tree, function):
                yield name, f"{path} {told}"


def _lacks(tree: ast.Module, function: str) -> str:
    defined = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    if function in defined:
        if _takes_two(defined[function].args):
            return ""
        return f"has {function!r} with other arguments; it is called as {function}{ARGUMENTS}"
    if function in _bound(tree):
        return ""
    there = ", ".join(defined) or "none"
    return f"has no function {function!r}, but {there}; write def {function}{ARGUMENTS}"


def _takes_two(arguments: ast.arguments) -> bool:
    places = len(arguments.posonlyargs + arguments.args)
    needed = places - len(arguments.defaults)
    named = None in arguments.kw_defaults  # one without a default, to be given by name
    return needed <= 2 and (places >= 2 or arguments.vararg is not None) and not named


def _bound(tree: ast.Module) -> set[str]:
    """Names that the file makes otherwise than by `def`: by assigning or importing."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return names

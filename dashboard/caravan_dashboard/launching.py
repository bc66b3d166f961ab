"""The one place where the dashboard changes something, always as the user who is signed in."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from caravan.recipe import Recipe
from caravan.registry import Choice
from caravan_dashboard import library
from caravan_dashboard.signin import current_user
from caravan_pipelines import actions


def launch(recipe: Recipe, recipe_dir: Path) -> str:
    """Start a run that this page may be closed on; gives its id. Relative paths are meant there."""
    return actions.launch(current_user(), recipe, library.settings(), recipe_dir=recipe_dir)


def resume(run_id: str) -> None:
    """Continue a run; finished stages are not repeated."""
    actions.resume(current_user(), run_id, library.registry(), library.settings())


def cancel(run_id: str) -> None:
    """Ask a run to stop; it can be resumed."""
    actions.cancel(current_user(), run_id, library.registry(), library.settings())


def set_tags(run_id: str, tags: Iterable[str]) -> None:
    actions.set_tags(current_user(), run_id, tags, library.registry())


def add_note(run_id: str, text: str) -> None:
    actions.add_note(current_user(), run_id, text, library.registry())


def edit_note(note_id: int, text: str) -> None:
    actions.edit_note(current_user(), note_id, text, library.registry())


def delete_note(note_id: int) -> None:
    actions.delete_note(current_user(), note_id, library.registry())


def rate_pair(digest: str, pair_id: str, choice: Choice) -> None:
    actions.rate_pair(current_user(), digest, pair_id, choice, library.registry())

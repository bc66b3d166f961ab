"""What a user may ask for that changes something. Each begins by asking whether they may."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from caravan.access import Role, User, require, require_own
from caravan.errors import RecipeError
from caravan.operations.costs import PROJECT_TAG
from caravan.recipe import Recipe
from caravan.registry import Choice, Registry
from caravan.settings import Settings
from caravan_pipelines.budget import refuse_projects
from caravan_pipelines.launch import backend

# --- runs ---------------------------------------------------------------------------------------


def launch(user: User, recipe: Recipe, settings: Settings, *, recipe_dir: Path) -> str:
    """Start a run that outlives this process and belongs to `user`; returns its id.

    It runs on Kubeflow Pipelines where the settings name one, else on this machine.

    Raises:
        AccessError: the user is no launcher.
        RecipeError: the recipe names code of its own.
        CaravanError: the run cannot be started here.
    """
    require(user, Role.LAUNCHER, "launch a run")
    refuse_code(recipe)
    owned = settings.model_copy(update={"owner": user.name})
    return backend.launch(recipe, owned, recipe_dir=recipe_dir)


def refuse_code(recipe: Recipe) -> None:
    """Refuse a recipe with verifiers of its own: its stages run that code with their credentials,
    which a launcher need not hold.

    Raises:
        RecipeError: it has some.
    """
    if recipe.verifiers:
        raise RecipeError(
            f"verifiers: {', '.join(recipe.verifiers)} would run code of the recipe's own, which "
            "is not taken from here; start it with `caravan run` or `caravan launch`, beside the "
            "files"
        )


def resume(user: User, run_id: str, registry: Registry, settings: Settings) -> None:
    """Continue a run from where it stopped; finished stages are not repeated."""
    run = registry.get_run(run_id)
    require_own(user, run.owner, f"resume {run.id}")
    backend.resume(run, settings)


def cancel(user: User, run_id: str, registry: Registry, settings: Settings) -> None:
    """Ask a run to stop; it can be resumed."""
    run = registry.get_run(run_id)
    require_own(user, run.owner, f"cancel {run.id}")
    backend.cancel(run, settings)


# --- tags and notes -----------------------------------------------------------------------------


def set_tags(user: User, run_id: str, tags: Iterable[str], registry: Registry) -> None:
    """Give a run these tags; that of its project stays.

    Raises:
        AccessError: the run is another's.
        BudgetError: a new tag names a project.
    """
    run, wanted = registry.get_run(run_id), set(tags)
    require_own(user, run.owner, f"tag {run.id}")
    refuse_projects(wanted.difference(run.tags))
    registry.set_tags(run.id, wanted | {tag for tag in run.tags if tag.startswith(PROJECT_TAG)})


def add_note(user: User, run_id: str, text: str, registry: Registry, *, subject: str = "") -> int:
    """Add a note in the user's name; any launcher may, to any run."""
    require(user, Role.LAUNCHER, "write a note")
    return registry.add_note(run_id, text, author=user.name, subject=subject)


def edit_note(user: User, note_id: int, text: str, registry: Registry) -> None:
    require_own(user, registry.note(note_id).author, "edit this note")
    registry.edit_note(note_id, text)


def delete_note(user: User, note_id: int, registry: Registry) -> None:
    require_own(user, registry.note(note_id).author, "delete this note")
    registry.delete_note(note_id)


# --- ratings ------------------------------------------------------------------------------------


def rate_pair(user: User, digest: str, pair_id: str, choice: Choice, registry: Registry) -> None:
    """Record which reply of a pair the user prefers; it takes the place of what they said before.

    Raises:
        AccessError: the user is no launcher.
    """
    require(user, Role.LAUNCHER, "rate pairs")
    registry.rate_pair(digest, pair_id, choice, person=user.name)

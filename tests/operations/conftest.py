from __future__ import annotations

import sys
from pathlib import Path

import pytest

from caravan.recipe.io import load_recipe, recipe_digest
from caravan.registry import Registry
from caravan.registry.states import State
from caravan.settings import Settings
from caravan_command import MINI, command_here

sys.path.append(str(Path(__file__).parent))  # for the stage `points`


@pytest.fixture
def settings(tmp_path) -> Settings:
    return Settings(home=tmp_path / "home", patience_seconds=1.0)


@pytest.fixture
def registry(settings):
    with Registry(settings.resolved_registry_url) as registry:
        yield registry


@pytest.fixture
def recipe():
    return load_recipe(MINI)


@pytest.fixture
def new_run(registry, recipe):
    """Creates a finished or unfinished run of the shrunken pocket recipe."""

    def create(*tags, recipe=recipe, state=None):
        run_id = registry.create_run(
            recipe.model_dump(mode="json"), name=recipe.name, seed=recipe.seed,
            recipe_digest=recipe_digest(recipe), recipe_dir=MINI.parent, tags=tags,
        )  # fmt: skip
        if state is not None:
            registry.update_run_state(run_id, state)
        return run_id

    return create


@pytest.fixture
def stage(registry):
    """Records a stage run that took so many seconds."""
    import sqlalchemy as sa

    def record(
        run_id, node, seconds, *, stage=None, state=State.SUCCEEDED, metrics={}, resources={},  # noqa: B006
    ):  # fmt: skip
        opened = registry.open_stage_run(run_id, node, stage or node, f"{run_id} {node}")
        registry.start_stage_run(opened.id, {}, resources=resources)
        if state.finished:
            registry.finish_stage_run(opened.id, state, metrics=metrics)
        earlier = sa.text(
            "UPDATE stage_run SET started_at = datetime(heartbeat_at, :ago) || '.000000' "
            "WHERE id = :id"
        )
        with registry._writer.begin() as connection:  # time passes
            connection.execute(earlier, {"ago": f"-{seconds} seconds", "id": opened.id})
        return registry.stage_run(opened.id)

    return record


@pytest.fixture
def caravan(settings, monkeypatch, capsys):
    return command_here(settings, monkeypatch, capsys)

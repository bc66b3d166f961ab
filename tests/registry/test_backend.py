"""A run knows who executes it; one on a cluster may wait for hours and is not lost for that."""

from __future__ import annotations

from caravan.registry import Registry, State, upgrade
from caravan.registry.database import connect, parse_url


def test_a_run_and_its_backend_know_each_other(tmp_path):
    with Registry(f"sqlite:///{tmp_path / 'r.db'}", stale_after_seconds=0.0) as registry:
        own = registry.create_run({}, name="a", seed=1, recipe_digest="d")
        there = registry.create_run({}, name="b", seed=1, recipe_digest="d", backend="kubeflow")
        registry.set_backend_run(there, "3f1c")
        registry.update_run_state(there, State.RUNNING)

        assert (registry.get_run(own).backend, registry.get_run(own).backend_run_id) == (
            "local",
            "",
        )
        assert registry.get_run(there).backend == "kubeflow"
        assert registry.get_run(there).backend_run_id == "3f1c"
        assert registry.get_run(own).state is State.INTERRUPTED
        assert registry.get_run(there).state is State.RUNNING


def test_one_of_those_that_take_a_run_from_its_backend_has_it(tmp_path):
    with Registry(f"sqlite:///{tmp_path / 'r.db'}") as registry:
        run_id = registry.create_run({}, name="b", seed=1, recipe_digest="d", backend="kubeflow")
        registry.set_backend_run(run_id, "3f1c")

        assert not registry.take_backend_run(run_id, "another")
        assert registry.take_backend_run(run_id, "3f1c")
        assert not registry.take_backend_run(run_id, "3f1c")
        assert registry.get_run(run_id).backend_run_id == ""


def test_runs_of_an_older_registry_are_local(tmp_path):
    from alembic import command

    from caravan.registry.database import alembic_config

    url = f"sqlite:///{tmp_path / 'r.db'}"
    engine = connect(parse_url(url))
    with engine.connect().execution_options(write=True) as connection, connection.begin():
        command.upgrade(alembic_config(connection), "0001")
        connection.exec_driver_sql(
            "INSERT INTO run (id, name, state, seed, owner, recipe, recipe_digest, recipe_dir, "
            "created_at) VALUES ('old', 'old', 'succeeded', 1, '', '{}', 'd', '', '2026-01-01')"
        )
    engine.dispose()
    upgrade(url)
    with Registry(url) as registry:
        assert registry.get_run("old").backend == "local"

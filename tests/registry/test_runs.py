"""Every test runs on SQLite and on PostgreSQL."""

import time
from datetime import UTC, timedelta

import pytest

from caravan.errors import RegistryError
from caravan.registry import State, SweepRow


def test_a_run_comes_back_as_it_was_created(registry):
    run_id = registry.create_run(
        {"name": "pocket", "sft": {"learning_rate": 5e-6}}, name="pocket", seed=2**40,
        recipe_digest="d" * 64, owner="ann", recipe_dir="/recipes", tags=["first", "a"],
    )  # fmt: skip

    run = registry.get_run(run_id)

    assert run.recipe == {"name": "pocket", "sft": {"learning_rate": 5e-6}}
    assert (run.seed, run.owner, run.recipe_dir) == (2**40, "ann", "/recipes")
    assert run.tags == ("a", "first")
    assert run.state is State.PENDING
    assert run.created_at.tzinfo is UTC
    assert run.id.startswith("pocket-20")


def test_a_run_is_found_by_the_beginning_of_its_id_and_as_latest(registry, new_run):
    first, second = new_run("one"), new_run("two")

    assert registry.get_run("one").id == first
    assert registry.get_run("latest").id == second
    assert registry.latest_run().id == second
    registry.update_run_state(first, State.RUNNING)  # the second waits for its turn
    assert registry.get_run("latest").id == registry.latest_run().id == first
    with pytest.raises(RegistryError, match="no run 'three'; `caravan runs` lists them"):
        registry.get_run("three")
    with pytest.raises(RegistryError, match="no run '%'"):
        registry.get_run("%")
    new_run("one")
    with pytest.raises(RegistryError, match="may mean several runs"):
        registry.get_run("one")


def test_runs_are_listed_newest_first_and_can_be_chosen(registry, new_run):
    old, new = new_run(owner="ann", tags=["keep"]), new_run("other", owner="bob")
    registry.update_run_state(old, State.RUNNING)
    registry.update_run_state(old, State.SUCCEEDED)

    assert [run.id for run in registry.list_runs()] == [new, old]
    assert [run.id for run in registry.list_runs(limit=1)] == [new]
    assert [run.id for run in registry.list_runs(state=State.SUCCEEDED)] == [old]
    assert [run.id for run in registry.list_runs(state=State.PENDING)] == [new]
    assert [run.id for run in registry.list_runs(name="other")] == [new]
    assert [run.id for run in registry.list_runs(owner="ann")] == [old]
    assert [run.id for run in registry.list_runs(tag="keep")] == [old]


def test_a_run_is_timed_from_its_first_start_to_its_end(registry, new_run):
    run_id = new_run()
    registry.update_run_state(run_id, State.RUNNING)
    started = registry.get_run(run_id).started_at
    registry.update_run_state(run_id, State.FAILED, error="sft: out of memory")
    failed = registry.get_run(run_id)
    registry.update_run_state(run_id, State.RUNNING)
    resumed = registry.get_run(run_id)

    assert failed.finished_at >= started
    assert failed.error == "sft: out of memory"
    assert failed.seconds == pytest.approx((failed.finished_at - started).total_seconds())
    assert (resumed.started_at, resumed.finished_at, resumed.error) == (started, None, None)


@pytest.mark.parametrize("end", [State.FAILED, State.CANCELLED, None])
def test_a_pause_before_a_run_goes_on_is_not_counted(registry, new_run, end):
    """None: the process was lost, and said nothing."""
    run_id = new_run()
    began = time.monotonic()
    registry.update_run_state(run_id, State.RUNNING)
    time.sleep(0.2)
    registry.heartbeat_run(run_id)
    if end:
        registry.update_run_state(run_id, end)
    time.sleep(0.6)
    registry.update_run_state(run_id, State.RUNNING)
    time.sleep(0.2)
    registry.update_run_state(run_id, State.SUCCEEDED)
    run = registry.get_run(run_id)
    assert 0.4 <= run.seconds < time.monotonic() - began - 0.6
    assert (run.finished_at - run.started_at).total_seconds() > 1.0


def test_a_run_whose_heart_has_stopped_is_interrupted_until_a_stage_beats(registry, new_run):
    run_id = new_run()
    registry.update_run_state(run_id, State.RUNNING)
    opened = registry.open_stage_run(run_id, "sft", "sft", "k" * 64)
    registry.start_stage_run(opened.id)
    assert registry.get_run(run_id).state is State.RUNNING
    time.sleep(0.3)

    registry.stale_after_seconds = 0.3
    assert registry.get_run(run_id).state is State.INTERRUPTED
    assert registry.stage_run(opened.id).state is State.INTERRUPTED
    assert [run.id for run in registry.list_runs(state=State.INTERRUPTED)] == [run_id]
    assert registry.list_runs(state=State.RUNNING) == []

    silent = registry.get_run(run_id)
    registry.heartbeat(opened.id)
    registry.stale_after_seconds = 60.0
    beating = registry.get_run(run_id)
    assert beating.heartbeat_at - silent.heartbeat_at >= timedelta(seconds=0.3)
    assert beating.state is State.RUNNING
    assert registry.stage_run(opened.id).state is State.RUNNING


def test_sweeps_are_told_newest_first_with_their_runs(registry, new_run):
    new_run(tags=["sweep:old", "dpo.beta=1"])
    new_run(tags=["sweepings"])
    for _ in range(2):
        new_run("other", tags=["nightly", "sweep:new"])
    new, old = registry.sweeps()
    assert new == SweepRow("sweep:new", "other", 2)
    assert old == SweepRow("sweep:old", "pocket", 1)

"""Every test runs on SQLite and on PostgreSQL."""

import math
import threading
import time

import pytest

from caravan.errors import RegistryError
from caravan.registry import State
from caravan.stages.context import Score
from registry_stages import artifact, stage


def test_a_stage_run_tells_what_it_read_and_wrote_and_how_far_it_is(registry, new_run):
    run_id = new_run()
    opened = registry.open_stage_run(run_id, "evaluate-sft", "evaluate", "k" * 64)
    registry.add_artifact(artifact("a", "model"), "file:///a")
    registry.start_stage_run(opened.id, {"model": "a" * 64})
    registry.heartbeat(opened.id, (3, 10))

    [running] = registry.stage_runs(run_id)
    assert (running.node, running.stage, running.state) == (
        "evaluate-sft", "evaluate", State.RUNNING,
    )  # fmt: skip
    assert (running.progress_done, running.progress_total, running.attempt) == (3, 10, 1)
    assert running.inputs == {"model": "a" * 64}
    assert registry.find_finished("k" * 64) is None

    registry.succeed_stage_run(
        opened.id, {"evaluation": (artifact("b", "report"), "file:///b")},
        metrics={"loss": 0.5, "odd": math.nan, "far": math.inf},
    )  # fmt: skip

    done = registry.find_finished("k" * 64)
    assert done == registry.stage_run(opened.id)
    assert done.outputs == {"evaluation": "b" * 64}
    assert done.metrics["loss"] == 0.5
    assert math.isnan(done.metrics["odd"])
    assert math.isnan(done.metrics["far"])
    assert registry.artifact("bbbb").size_bytes == 3_000_000_000
    assert registry.artifact("b" * 64).uri == "file:///b"


def test_a_failed_stage_run_keeps_its_error_until_it_starts_again(registry, new_run):
    run_id = new_run()
    opened = registry.open_stage_run(run_id, "sft", "sft", "k" * 64)
    registry.start_stage_run(opened.id)
    registry.finish_stage_run(opened.id, State.FAILED, error="ValueError: no\n\nTraceback ...")
    assert registry.stage_run(opened.id).error.startswith("ValueError: no")

    again = registry.open_stage_run(run_id, "sft", "sft", "k" * 64)
    registry.start_stage_run(again.id)

    assert again.id == opened.id
    assert registry.stage_run(again.id).attempt == 2
    assert registry.stage_run(again.id).error is None


def test_text_that_no_database_takes_is_written_out(registry, new_run):
    run_id = new_run()
    opened = registry.open_stage_run(run_id, "sft", "sft", "k" * 64)
    registry.finish_stage_run(opened.id, State.FAILED, error="a\x00b\ud800c é")

    assert registry.stage_run(opened.id).error == "a\\x00b\\ud800c é"


def test_what_succeeded_stays_so_when_it_is_opened_or_stopped_again(registry, new_run):
    run_id = new_run()
    done = stage(registry, run_id, "sft", "k", outputs="b")

    registry.open_stage_run(run_id, "sft", "sft", "k" * 64)
    registry.finish_stage_run(done.id, State.CANCELLED, error="too late")

    assert registry.stage_run(done.id) == done


def test_a_reused_stage_run_shows_its_origins_series_and_scores(registry, new_run):
    first, second = new_run(), new_run()
    origin = stage(registry, first, "evaluate-sft", "k", inputs="a", outputs="b")
    registry.log_metrics(origin.id, 1, {"loss": 2.0})
    registry.add_scores(origin.id, [Score("gsm", "accuracy", 0.5, 0.4, 0.6, 2)])

    opened = registry.open_stage_run(second, "evaluate-sft", "evaluate", "k" * 64)
    registry.reuse_stage_run(opened.id, origin)

    reused = registry.stage_run(opened.id)
    assert (reused.state, reused.reused_from) == (State.SUCCEEDED, origin.id)
    assert (reused.inputs, reused.outputs) == (origin.inputs, origin.outputs)
    assert [m.value for m in registry.metrics(reused.id)] == [2.0]
    assert [(s.run_id, s.value) for s in registry.scores(first, second)] == [
        (first, 0.5), (second, 0.5),
    ]  # fmt: skip
    assert registry.measured_stages(second) == [reused.id]
    assert registry.find_finished("k" * 64).id == origin.id


def test_changed_work_forgets_the_old_and_leaves_it_to_those_who_reused_it(registry, new_run):
    owner, heir, other = new_run(), new_run(), new_run()
    origin = stage(registry, owner, "sft", "k", outputs="b")
    registry.log_metrics(origin.id, 1, {"loss": 2.0})
    for run_id in (heir, other):
        opened = registry.open_stage_run(run_id, "sft", "sft", "k" * 64)
        registry.reuse_stage_run(opened.id, origin)

    registry.open_stage_run(owner, "sft", "sft", "changed" + "0" * 57)

    [reopened], [inherited], [reused] = map(registry.stage_runs, (owner, heir, other))
    assert (reopened.state, reopened.outputs) == (State.PENDING, {})
    assert registry.metrics(reopened.id) == []
    assert (inherited.reused_from, reused.reused_from) == (None, inherited.id)
    assert [m.value for m in registry.metrics(reused.id)] == [2.0]
    assert registry.find_finished("k" * 64).id == inherited.id


def test_one_node_opened_by_many_at_once_is_one_stage_run(registry, new_run):
    run_id, ids, errors = new_run(), [], []

    def open_it():
        try:
            ids.append(registry.open_stage_run(run_id, "sft", "sft", "k" * 64).id)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    assert len(ids) == 8
    assert len(set(ids)) == 1


def test_a_stage_of_no_run_is_refused(registry):
    with pytest.raises(RegistryError, match="no run 'nowhere'"):
        registry.open_stage_run("nowhere", "sft", "sft", "k" * 64)


def test_the_time_of_every_attempt_counts_and_that_of_a_reused_stage_does_not(registry, new_run):
    def attempt(state):
        opened = registry.open_stage_run(run_id, "sft", "sft", "key")
        registry.start_stage_run(opened.id, {})
        time.sleep(0.05)
        registry.finish_stage_run(opened.id, state)
        return registry.stage_run(opened.id)

    run_id = new_run()
    first = attempt(State.FAILED)
    assert first.total_seconds == first.seconds >= 0.05
    last = attempt(State.SUCCEEDED)
    assert last.spent_seconds == pytest.approx(first.seconds)
    assert last.total_seconds == pytest.approx(first.seconds + last.seconds)

    other = registry.open_stage_run(new_run(), "sft", "sft", "key")
    registry.reuse_stage_run(other.id, last)
    assert registry.stage_run(other.id).total_seconds == 0.0

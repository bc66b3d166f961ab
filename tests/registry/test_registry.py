"""Every test runs on SQLite and on PostgreSQL."""

import math
import threading
import time
from datetime import UTC, timedelta
from itertools import pairwise

import pytest
import sqlalchemy as sa

from caravan.errors import RegistryError
from caravan.registry import State, SweepRow
from caravan.stages.context import Score
from caravan.store import Artifact


def artifact(letter, kind="dataset"):
    return Artifact(digest=letter * 64, kind=kind, size_bytes=3_000_000_000, files=2)


def stage(registry, run_id, node, key, inputs=(), outputs=()):
    """A succeeded stage run; inputs and outputs as letters of artifacts."""
    opened = registry.open_stage_run(run_id, node, node, key * 64)
    for letter in inputs:
        registry.add_artifact(artifact(letter), f"file:///{letter}")
    registry.start_stage_run(opened.id, {f"in-{c}": c * 64 for c in inputs})
    registry.succeed_stage_run(
        opened.id, {f"out-{c}": (artifact(c), f"file:///{c}") for c in outputs}
    )
    return registry.stage_run(opened.id)


# --- runs ---------------------------------------------------------------------------------------


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


# --- stage runs ---------------------------------------------------------------------------------


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


# --- lineage ------------------------------------------------------------------------------------


def test_lineage_goes_back_to_the_source_and_forward_to_the_report(registry, new_run):
    run_id = new_run()
    stage(registry, run_id, "curate", "1", outputs="a")
    stage(registry, run_id, "mix", "2", inputs="a", outputs="b")
    stage(registry, run_id, "base", "3", outputs="c")
    stage(registry, run_id, "sft", "4", inputs="bc", outputs="d")
    stage(registry, run_id, "evaluate", "5", inputs="d", outputs="e")

    back = registry.lineage("d" * 64, "in")
    assert {edge.node for edge in back} == {"curate", "mix", "base", "sft"}
    assert [(e.node, e.name, e.depth) for e in back if e.direction == "out"] == [
        ("sft", "out-d", 0), ("mix", "out-b", 1), ("base", "out-c", 1), ("curate", "out-a", 2),
    ]  # fmt: skip
    forward = registry.lineage("a" * 64, "out")
    assert [e.node for e in forward if e.direction == "out"] == ["mix", "sft", "evaluate"]
    assert registry.lineage("f" * 64, "in") == []


def test_lineage_counts_the_same_work_once_and_ends_on_a_stage_that_changes_nothing(
    registry, new_run
):
    first, second = new_run(), new_run()
    origin = stage(registry, first, "mix", "1", inputs="a", outputs="a")
    opened = registry.open_stage_run(second, "mix", "mix", "1" * 64)
    registry.reuse_stage_run(opened.id, origin)

    assert {edge.stage_run_id for edge in registry.lineage("a" * 64, "in")} == {origin.id}
    own = registry.lineage("a" * 64, "in", run_id=second)
    assert {edge.stage_run_id for edge in own} == {opened.id}


def test_sweeps_are_told_newest_first_with_their_runs(registry, new_run):
    new_run(tags=["sweep:old", "dpo.beta=1"])
    new_run(tags=["sweepings"])
    for _ in range(2):
        new_run("other", tags=["nightly", "sweep:new"])
    new, old = registry.sweeps()
    assert new == SweepRow("sweep:new", "other", 2)
    assert old == SweepRow("sweep:old", "pocket", 1)


def test_artifacts_are_in_the_order_of_the_numbers_in_their_names(registry, new_run):
    run_id = new_run()
    opened = registry.open_stage_run(run_id, "rlvr", "rlvr", "1" * 64)
    registry.start_stage_run(opened.id, {})
    names = ["rollouts", "step-100", "step-40", "model", "step-1000"]
    made = {name: (artifact("abcde"[i]), "file:///x") for i, name in enumerate(names)}
    registry.succeed_stage_run(opened.id, made)

    expected = ["model", "rollouts", "step-40", "step-100", "step-1000"]
    assert list(registry.stage_run(opened.id).outputs) == expected
    digests = registry.stage_run(opened.id).outputs
    reads = registry.open_stage_run(run_id, "select", "select", "2" * 64)
    registry.start_stage_run(reads.id, digests)
    registry.succeed_stage_run(reads.id, {"model": (artifact("f"), "file:///f")})
    lineage = registry.lineage("f" * 64, "in")
    assert [edge.name for edge in lineage if edge.node == "select"] == [*expected, "model"]


def test_a_long_descent_is_one_question(registry, new_run):
    run_id, letters = new_run(), "0123456789abcdef"
    for i, (made_from, made) in enumerate(pairwise(letters)):
        stage(registry, run_id, f"stage-{i}", letters[i], inputs=made_from, outputs=made)
    asked = []
    sa.event.listen(registry._engine, "before_cursor_execute", lambda *a: asked.append(a[2]))

    back = registry.lineage("f" * 64, "in")

    assert [edge.depth for edge in back if edge.direction == "out"] == list(range(15))
    assert sum("SELECT" in statement for statement in asked) == 1


# --- metrics, scores, annotations ---------------------------------------------------------------


def test_metrics_delivered_twice_are_there_once(registry, new_run):
    opened = registry.open_stage_run(new_run(), "sft", "sft", "k" * 64)
    for _ in range(2):
        registry.log_metrics(opened.id, 1, {"loss": 2.0, "lr": 1e-5})
        registry.log_metrics(opened.id, 2, {"loss": math.nan, "grad_norm": math.inf})

    rows = registry.metrics(opened.id)

    assert [(r.step, r.name) for r in rows] == [
        (1, "loss"), (1, "lr"), (2, "grad_norm"), (2, "loss"),
    ]  # fmt: skip
    assert rows[1].value == 1e-5
    assert rows[2].value == math.inf
    assert math.isnan(rows[3].value)
    assert [r.step for r in registry.metrics(opened.id, names=["loss"], after_step=1)] == [2]


def test_the_last_steps_and_the_first_of_an_attempt_are_found(registry, new_run):
    opened = registry.open_stage_run(new_run(), "sft", "sft", "k" * 64)
    assert registry.metrics(opened.id, last_steps=2) == []
    began = registry.get_run("latest").created_at
    for step, minute in ((1, 0), (2, 1), (3, 5), (4, 6)):
        at = began + timedelta(minutes=minute)
        registry.log_points(opened.id, [(step, "loss", 1.0, at), (step, "lr", 1e-5, at)])

    last = registry.metrics(opened.id, names=["loss"], last_steps=2)
    assert [(r.step, r.name) for r in last] == [(3, "loss"), (4, "loss")]
    assert registry.first_step(opened.id, ["loss"], began + timedelta(minutes=2)) == 3
    assert registry.first_step(opened.id, ["loss"], began + timedelta(minutes=9)) is None


def test_a_curve_is_thinned_to_means_with_what_they_stand_for(registry, new_run):
    opened = registry.open_stage_run(new_run(), "sft", "sft", "k" * 64)
    began = registry.get_run("latest").created_at
    values = [1.0, 3.0, math.nan, 5.0, math.nan, math.nan, 7.0]
    for step, value in enumerate(values, start=1):
        at = began + timedelta(minutes=step)
        registry.log_points(opened.id, [(step, "loss", value, at), (step, "lr", 1e-5, at)])
    registry.log_metrics(opened.id, 4, {"accuracy": 0.5})

    first, second, third, fourth = registry.curve(opened.id, "loss", 4)
    assert (first.first_step, first.last_step, first.at) == (1, 2, began + timedelta(minutes=1))
    assert (first.mean, first.low, first.high) == (2.0, 1.0, 3.0)
    assert (second.mean, fourth.first_step, fourth.mean) == (5.0, 7, 7.0)
    assert math.isnan(third.mean)
    assert [p.mean for p in registry.curve(opened.id, "accuracy", 4)] == [0.5]
    assert registry.curve(opened.id, "reward", 4) == []
    assert registry.metric_names(opened.id) == {"accuracy": 4, "loss": 7, "lr": 7}

    registry.succeed_stage_run(opened.id, {})
    reused = registry.open_stage_run(new_run(), "sft", "sft", "k" * 64)
    assert registry.reuse_stage_run(reused.id, registry.find_finished("k" * 64))
    assert registry.metric_names(reused.id) == registry.metric_names(opened.id)
    assert registry.curve(reused.id, "lr", 4) == registry.curve(opened.id, "lr", 4)


def test_many_metrics_are_recorded_fast(registry, new_run):
    opened = registry.open_stage_run(new_run(), "sft", "sft", "k" * 64)
    at = registry.get_run("latest").created_at
    points = [(step, f"m{i}", float(step), at) for step in range(1000) for i in range(10)]

    start = time.monotonic()
    registry.log_points(opened.id, points)

    assert len(registry.metrics(opened.id)) == 10_000
    assert time.monotonic() - start < 30


def test_scores_come_with_their_instances_and_replace_earlier_ones(registry, new_run):
    run_id = new_run()
    opened = registry.open_stage_run(run_id, "evaluate-sft", "evaluate", "k" * 64)
    registry.add_scores(opened.id, [Score("gsm", "accuracy", 0.1, 0.0, 0.2, 1)])
    registry.add_scores(
        opened.id,
        [
            Score("gsm", "accuracy", 0.5, 0.4, 0.6, 2, instances={"gsm/1": 1.0, "gsm/2": 0.0}),
            Score("chat", "win_rate", 0.7, 0.6, 0.8, 9, suite="unseen"),
        ],
    )

    gsm, chat = registry.scores(run_id)

    assert (gsm.node, gsm.task, gsm.metric, gsm.suite) == ("evaluate-sft", "gsm", "accuracy", "dev")
    assert (chat.value, chat.low, chat.high, chat.n, chat.suite) == (0.7, 0.6, 0.8, 9, "unseen")
    assert [(i.instance_id, i.value) for i in registry.score_instances(gsm.id)] == [
        ("gsm/1", 1.0), ("gsm/2", 0.0),
    ]  # fmt: skip


def test_tags_and_notes(registry, new_run):
    run_id = new_run(tags=["b"])
    registry.set_tags(run_id, ["a", "c", "a"])
    first = registry.add_note(run_id, "look at <b>this</b>", author="ann", subject="sft")
    second = registry.add_note(run_id, "mistake", author="bob")
    registry.edit_note(first, "better")
    registry.delete_note(second)

    assert registry.tags(run_id) == ["a", "c"]
    [note] = registry.notes(run_id)
    assert (note.text, note.author, note.subject) == ("better", "ann", "sft")
    with pytest.raises(RegistryError, match="1 to 128 characters"):
        registry.set_tags(run_id, [" "])
    with pytest.raises(RegistryError, match="a note needs some text"):
        registry.add_note(run_id, "\n", author="ann")


def test_an_artifact_is_found_by_the_beginning_of_its_digest(registry):
    registry.add_artifact(artifact("a"), "file:///a", {"rows": 3})
    registry.add_artifact(Artifact("aaaab" + "0" * 59, "model", 1, 1), "file:///b")

    assert registry.artifact("aaaaa").metadata == {"rows": 3}
    assert [a.kind for a in registry.artifacts(kind="model")] == ["model"]
    with pytest.raises(RegistryError, match="may mean several"):
        registry.artifact("aaaa")
    with pytest.raises(RegistryError, match="no artifact 'aa'"):
        registry.artifact("aa")


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


# --- ratings of pairs ---------------------------------------------------------------------------


def said(registry, letter="a"):
    return {(r.pair_id, r.person): r.choice for r in registry.pair_ratings(letter * 64)}


def test_of_each_person_and_pair_the_last_rating_counts(registry):
    registry.add_artifact(artifact("a", "pairs"), "file:///a")
    registry.add_artifact(artifact("b", "pairs"), "file:///b")
    registry.rate_pair("a" * 64, "x/1", "chosen", person="ann")
    registry.rate_pair("a" * 64, "x/2", "tie", person="ann")
    registry.rate_pair("a" * 64, "x/1", "rejected", person="bob")
    registry.rate_pair("a" * 64, "x/1", "skip", person="ann")

    assert said(registry) == {
        ("x/1", "ann"): "skip", ("x/2", "ann"): "tie", ("x/1", "bob"): "rejected",
    }  # fmt: skip
    last = registry.pair_ratings("a" * 64)[-1]
    assert (last.person, last.at.tzinfo) == ("ann", UTC)  # changed last
    assert said(registry, "b") == {}
    assert registry.rated_pairs() == {"a" * 64: 3}
    with pytest.raises(RegistryError, match="no pairs cccccccccccc; somebody has deleted them"):
        registry.rate_pair("c" * 64, "x/1", "chosen", person="ann")


def test_rated_pairs_outlive_their_run_until_the_ratings_are_given_up(registry, new_run):
    run_id, gone = new_run(), []
    stage(registry, run_id, "pair", "k", outputs="ab")
    registry.rate_pair("a" * 64, "x/1", "chosen", person="ann")
    registry.update_run_state(run_id, State.CANCELLED)

    assert not registry.collect("a" * 64, lambda: gone.append("a"), rated=True)  # a run's
    registry.delete_runs([run_id])
    assert registry.collect("b" * 64, lambda: gone.append("b"))
    assert not registry.collect("a" * 64, lambda: gone.append("a"))
    assert said(registry) == {("x/1", "ann"): "chosen"}
    assert registry.artifact("a" * 64).kind == "dataset"

    assert registry.collect("a" * 64, lambda: gone.append("a"), rated=True)
    assert gone == ["b", "a"]
    assert registry.rated_pairs() == {}

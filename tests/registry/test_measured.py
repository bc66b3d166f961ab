"""Every test runs on SQLite and on PostgreSQL."""

import math
import time
from datetime import timedelta

from caravan.stages.context import Score


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

"""The page of rollouts."""

from __future__ import annotations

import re

import pytest
from drawn import markup, plain
from sample_rows import rollouts

from caravan.data.io import write_rows
from caravan.registry import State
from caravan.settings import Settings


def test_rollouts_of_a_prompt_stand_together(open_page, run_ids):
    app = open_page("rollouts", run=run_ids["complete"])

    assert "1–3 of 12 groups" in plain(app)
    assert markup(app).count('class="cv-card"') == 12


@pytest.mark.parametrize(
    ("order", "first"), [("By step", "0"), ("Highest reward", "10"), ("Longest", "0")]
)
def test_rollouts_stand_in_the_order_that_is_asked_for(open_page, run_ids, order, first):
    shown = markup(open_page("rollouts", run=run_ids["complete"], order=order))
    rewards = re.findall(r'cv-name">reward</span><span class="cv-\w+">(\d+)<', shown)
    assert rewards[0] == first


def test_a_reward_models_score_stands_beside_the_verdict(open_page, run_ids, registry, home):
    stage = registry.open_stage_run(run_ids["running"], "rlvr", "rlvr", "k" * 64)
    registry.start_stage_run(stage.id)
    workdir = Settings(home=home).work_dir / stage.key / "scratch"
    scored = {"scores": (1.25, -0.5, 0.0, 3.0)}
    first, second, *_ = rollouts()
    unchecked = {"verifier": "", "outcomes": ("unchecked",) * 4, "rewards": (1.25, -0.5, 0.0, 3.0)}
    write_rows(
        workdir / "so-far.jsonl",
        [first.model_copy(update=scored), second.model_copy(update=scored | unchecked)],
    )
    app = open_page("rollouts", run=run_ids["running"])
    assert markup(app).count("+1.25") == 2
    assert markup(app).count("unchecked") == 4
    assert markup(app).count("cv-right") + markup(app).count("cv-wrong") == 4


@pytest.mark.parametrize("state", [State.RUNNING, State.CANCELLED, State.FAILED])
def test_rollouts_show_before_the_stage_has_finished(open_page, run_ids, registry, home, state):
    stage = registry.open_stage_run(run_ids["running"], "rlvr", "rlvr", "k" * 64)
    registry.start_stage_run(stage.id)
    if state is not State.RUNNING:
        registry.finish_stage_run(stage.id, state, error="stopped")
    assert "after the first step" in plain(open_page("rollouts", run=run_ids["running"]))

    workdir = Settings(home=home).work_dir / stage.key / "scratch"
    write_rows(workdir / "so-far.jsonl", rollouts())
    app = open_page("rollouts", run=run_ids["running"])
    assert "Of step 60 and some steps before it" in plain(app)
    assert "1–3 of 12 groups" in plain(app)
    assert markup(app).count('class="cv-card"') == 12

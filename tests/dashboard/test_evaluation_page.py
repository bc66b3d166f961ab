"""The page of scores and of the instances behind them."""

from __future__ import annotations

from drawn import markup, plain
from sample_run import SampleRun

from caravan.stages.context import Score


def test_scores_stand_with_their_intervals_and_what_changed(open_page, run_ids):
    app = open_page("evaluation", run=run_ids["complete"])
    shown = markup(app)

    assert "sft → dpo" in shown
    assert 'class="cv-up"' in shown
    assert "small-talk:dpo&gt;sft" in shown
    assert "66.0" in shown
    _, _, changes = shown.partition("sft → dpo")
    assert 'word-problems<span class="cv-dim"> accuracy</span>' in changes


def test_scores_of_replies_without_end_or_verdict_say_so_wherever_they_stand(
    open_page, home, tmp_path
):
    run = SampleRun(home, tmp_path / "scratch", seed=29)
    for model in ("base", "sft"):
        run.model(model, [], 1, 0.5)
        values = {f"gsm/{i}": 0.0 for i in range(12)}
        score = Score("gsm", "accuracy", 0.0, 0.0, 0.24, 12, "dev", values)
        lacking = {"gsm/truncated": 0.95, "gsm/undecided_share": 0.25}
        run.stage(f"evaluate-{model}", {}, [model], scores=[score], metrics=lacking)
    run_id = run.finish()

    scores = markup(open_page("evaluation", run=run_id))
    assert scores.count("cut off: 95 %, undecided: 25 %") == 2
    assert "no difference on any of the 12" in scores
    assert "cut off: 95 %, undecided: 25 %" in markup(open_page("runs"))
    page = open_page("run", run=run_id)
    assert markup(page).count("cut off: 95 %, undecided: 25 %") == 2
    sft = page.metric[1]
    assert (sft.delta, sft.proto.color) == ("no change", sft.proto.MetricColor.GRAY)


def test_scores_that_a_policy_was_selected_by_say_so(open_page, run_ids, home, tmp_path):
    run = SampleRun(home, tmp_path / "scratch", seed=31)
    recipe = run.recipe.model_dump(mode="json")
    for stage in ("sft", "rlvr"):
        recipe[stage] = (recipe[stage] or {}) | {"select": {"every": 2, "tasks": ["gsm"]}}
    run.run_id = run.registry.create_run(recipe, name="chosen", seed=31, recipe_digest="d" * 64)
    run.model("base", [], 1, 0.5)
    score = Score("gsm", "accuracy", 0.5, 0.2, 0.8, 12, "dev", {})
    run.stage("evaluate-base", {}, ["base"], scores=[score])
    run_id = run.finish()

    note = "{}'s policy was selected by its scores on gsm: there its scores"
    captions = [caption.value for caption in open_page("evaluation", run=run_id).caption]
    for stage in ("SFT", "RLVR"):
        assert any(note.format(stage) in caption for caption in captions)
    other = open_page("evaluation", run=run_ids["complete"])
    assert not any("selected" in caption.value for caption in other.caption)


def test_two_runs_are_compared_model_by_model(open_page, run_ids, home, tmp_path, request):
    from_conftest = request.getfixturevalue("another_run")
    app = open_page("evaluation", run=run_ids["complete"], **{"with": from_conftest})

    assert f"rlvr · {run_ids['complete']} → rlvr · {from_conftest}" in markup(app)


def test_what_changed_between_two_runs_stands_over_their_scores_and_with_the_recipe(
    open_page, run_ids, variant
):
    both = {"run": run_ids["complete"], "with": variant}
    scores = markup(open_page("evaluation", **both))
    app = open_page("run", view="Recipe", **both)

    for shown in (scores, markup(app)):
        assert '<span class="cv-mono">dpo.beta</span>' in shown
        assert "<td>5</td>" in shown
        assert "<td>2.5</td>" in shown
    assert "Every field in which" in plain(app)
    assert "beta: 5" in plain(open_page("run", view="Recipe", run=run_ids["complete"]))


def test_instances_that_a_model_gained_stand_beside_the_model_before(open_page, run_ids):
    app = open_page(
        "evaluation", run=run_ids["complete"], view="Instances", task="word-problems",
        which="Gained",
    )  # fmt: skip
    shown = markup(app)

    assert "of 12 instances" in plain(app)
    assert shown.count("cv-right") == shown.count("cv-wrong") == 5
    assert "extracted" in shown


def test_instances_of_two_runs_stand_with_the_chosen_run_and_the_same_model_of_the_other(
    open_page, run_ids, another_run
):
    app = open_page(
        "evaluation", run=run_ids["complete"], view="Instances", **{"with": another_run}
    )

    assert app.selectbox(key="model").value == f"rlvr · {run_ids['complete']}"
    assert app.selectbox(key="beside").value == f"rlvr · {another_run}"


def test_ratings_are_neither_right_nor_wrong(open_page, run_ids):
    app = open_page("evaluation", run=run_ids["complete"], view="Instances", task="small-talk")

    assert "cv-right" not in markup(app)
    assert "helpfulness" in markup(app)

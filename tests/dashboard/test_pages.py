"""Each page, drawn in process against a real registry and a real store."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from drawn import checked, markup, plain
from sample_rows import rollouts
from sample_run import SampleRun

from caravan.data.io import write_rows
from caravan.registry import State
from caravan.settings import Settings
from caravan.stages.context import Score
from caravan_dashboard import charts
from caravan_dashboard.launch import APP, command
from caravan_dashboard.markup import legend

PAGES = ("runs", "run", "data", "pairs", "evaluation", "curves", "rollouts", "launch")


@pytest.fixture
def variant(home: Path, tmp_path: Path) -> str:
    """A run whose recipe differs from the others' in one field."""
    run = SampleRun(home, tmp_path / "scratch")
    run.registry.update_run_state(run.run_id, State.CANCELLED)
    run.registry.delete_runs([run.run_id])
    run.recipe = run.recipe.derive(dpo=run.recipe.dpo.derive(beta=2.5))
    run.create()
    run.everything()
    return run.finish()


@pytest.mark.parametrize("which", ["complete", "failed", "running"])
@pytest.mark.parametrize("page", PAGES)
def test_every_page_draws_every_run(open_page, run_ids, page, which):
    app = open_page(page, run=run_ids[which])

    assert not app.error or page == "launch"


@pytest.mark.parametrize("page", PAGES)
def test_without_a_run_a_page_says_what_to_do(open_page, nothing, page):
    app = open_page(page)

    if page != "launch":
        assert "caravan run pipelines/recipes/pocket.yaml" in plain(app)


@pytest.mark.parametrize(
    ("page", "parameters"),
    [
        ("runs", {}),
        ("run", {"view": "Progress"}),
        ("run", {"view": "Notes"}),
        ("run", {"view": "Lineage", "all": "true"}),
        ("run", {"view": "Recipe"}),
        ("data", {"view": "Contamination"}),
        ("data", {"view": "Rows"}),
        ("pairs", {}),
        ("pairs", {"diff": "false", "ratings": "true"}),
        ("pairs", {"view": "Rate", "pair": "word-problems/0"}),
        ("evaluation", {"view": "Instances", "task": "word-problems"}),
        ("rollouts", {}),
    ],
)
@pytest.mark.parametrize("which", ["complete", "failed"])
def test_text_of_rows_and_people_is_never_markup(open_page, run_ids, page, parameters, which):
    app = open_page(page, run=run_ids[which], **parameters)

    shown = markup(app)
    for tag in ("<img", "<script", "<b>tag", "</div> "):
        assert tag not in shown
    for element in (*app.markdown, *app.caption, *app.error, *app.info):
        assert "onerror" not in element.value
        assert "**bold**" not in element.value


def test_pairs_that_nobody_rated_are_shown_as_such(open_page, run_ids):
    app = open_page("pairs", run=run_ids["failed"])
    assert "1–5 of 7 pairs" in plain(app)
    assert '<span class="cv-name">rating</span>–' in markup(app)
    assert "<span>unknown</span>" in markup(app)


def test_malicious_text_is_there_to_read(open_page, run_ids):
    row = markup(open_page("data", run=run_ids["complete"], view="Rows"))
    pair = markup(open_page("pairs", run=run_ids["complete"], diff="false"))
    error = markup(open_page("run", run=run_ids["failed"]))

    for shown in (row, pair, error):
        assert "&lt;script&gt;document.title=2&lt;/script&gt; **bold** :red[red]" in shown


def test_an_unknown_run_in_the_address_is_named(open_page, home):
    app = open_page("run", run="<b>nobody</b>")

    assert app.error
    assert "<b>nobody</b>" in app.code[0].value


def test_the_address_names_the_run_that_is_shown(open_page, run_ids):
    app = open_page("evaluation")  # none asked for: the newest

    assert app.query_params["run"] == run_ids["running"]
    app.sidebar.selectbox(key="run_picker").select(run_ids["complete"])
    assert checked(app.run()).query_params["run"] == run_ids["complete"]


def test_runs_to_choose_from_say_state_and_tags_and_the_address_only_the_ids(open_page, run_ids):
    complete, failed, running = (run_ids[name] for name in ("complete", "failed", "running"))
    app = open_page("evaluation", run=complete, **{"with": failed})

    assert (
        f"{complete} · succeeded · <b>tag</b> · baseline" in app.selectbox(key="run_picker").options
    )
    others = app.multiselect(key="with_picker")
    assert set(others.options) == {f"{failed} · failed · =1+1", f"{running} · running"}
    assert others.value == [failed]
    checked(others.set_value([failed, running]).run())
    assert app.query_params["with"] == [failed, running]
    checked(app.multiselect(key="with_picker").set_value([]).run())
    assert "with" not in app.query_params


@pytest.mark.parametrize("page", ["data", "pairs", "rollouts"])
def test_an_artifact_that_is_gone_is_named_with_the_store(open_page, home, run_ids, page):
    shutil.rmtree(home / "store" / "objects")

    app = open_page(page, run=run_ids["complete"])

    assert "This page cannot be shown." in plain(app)
    assert "has no artifact" in app.code[-1].value


def test_a_broken_row_is_named_by_its_number(open_page, home, run_ids, registry):
    pair = next(s for s in registry.stage_runs(run_ids["complete"]) if s.node == "pair")
    rows = next((home / "store").rglob(f"{pair.outputs['pairs']}/files/rows.jsonl"))
    rows.chmod(0o644)
    rows.write_text(rows.read_text().replace('"chosen_rating"', '"rating"', 1))

    app = open_page("pairs", run=run_ids["complete"])

    assert "corrupted" in app.code[-1].value


# --- runs ---------------------------------------------------------------------------------------


def test_runs_are_listed_with_state_scores_and_a_link(open_page, run_ids):
    shown = markup(open_page("runs"))

    for run_id in run_ids.values():
        assert f'href="./run?run={run_id}"' in shown
    for state in ("succeeded", "failed", "running"):
        assert f"</span>{state}</span>" in shown
    assert "RLVR" in shown
    ids = [run_ids[name] for name in ("running", "complete", "failed")]  # newest first
    link = f'href="./curves?run={ids[0]}&amp;with={ids[1]}&amp;with={ids[2]}"'
    assert link in shown


def test_runs_are_filtered_by_the_address(open_page, run_ids):
    app = open_page("runs", state="failed")

    assert run_ids["failed"] in markup(app)
    assert run_ids["complete"] not in markup(app)
    app.text_input(key="q").set_value("baseline").run()
    assert "None of the 3 runs matches" in plain(checked(app))


def test_the_best_run_comes_first_if_asked_for(open_page, run_ids, registry):
    def places(order: str) -> list[int]:
        shown = markup(open_page("runs", order=order))
        return [shown.index(f"run={run_ids[which]}") for which in ("complete", "failed", "running")]

    complete, failed, running = places("Newest first")
    assert running < complete < failed
    complete, failed, running = places("Best rlvr")
    assert complete < running < failed  # those without a score as they were


def test_runs_of_one_recipe_say_in_what_they_differ_and_are_found_by_it(open_page, home, variant):
    app = open_page("runs")
    assert "dpo.beta=2.5" in markup(app)

    app.text_input(key="q").set_value("sample dpo.beta=2.5").run()
    assert markup(checked(app)).count('href="./run?') == 1
    assert f"run={variant}" in markup(app)


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


# --- one run ------------------------------------------------------------------------------------


def test_a_failed_run_says_why_and_how_to_go_on(open_page, run_ids):
    app = open_page("run", run=run_ids["failed"])

    assert "rows.jsonl, row 3" in markup(app)
    assert "; correct or remove it" in markup(app)
    assert "KeyError" not in markup(app)
    assert f"caravan resume {run_ids['failed']}" in plain(app)
    assert [b.label for b in app.button] == ["Resume"]


def test_a_running_run_shows_how_far_it_is(open_page, run_ids):
    app = open_page("run", run=run_ids["running"])

    assert "2 of 3" in markup(app)
    assert "4 warnings, the last: 997 of 1196 rows have no &lt;reply&gt;" in markup(app)
    assert [b.label for b in app.button] == ["Cancel"]
    app.button[0].click().run()  # no process of this machine executes it
    assert "The run could not be cancelled." in plain(checked(app))


def test_a_run_whose_heartbeat_stopped_can_be_resumed(open_page, run_ids, monkeypatch):
    monkeypatch.setenv("CARAVAN_STALE_AFTER_SECONDS", "0.001")
    app = open_page("run", run=run_ids["running"])

    assert "interrupted" in markup(app)
    assert f"caravan resume {run_ids['running']}" in plain(app)


def test_a_run_shows_its_models_in_order_however_they_were_evaluated(open_page, run_ids):
    app = open_page("run", run=run_ids["complete"])

    assert [card.label for card in app.metric] == ["BASE", "SFT", "DPO", "RLVR"]
    assert [card.delta.startswith("+") for card in app.metric[1:]] == [True, True, True]


def test_metrics_of_a_stage_are_drawn(open_page, run_ids):
    app = open_page("run", run=run_ids["complete"], stage="sft")

    assert app.selectbox(key="stage").value == "sft"
    assert len(app.get("vega_lite_chart")) == 4


def test_lineage_draws_artifacts_between_stages(open_page, run_ids, registry):
    digest = registry.stage_runs(run_ids["complete"])[-1].inputs["evaluate-rlvr-evaluation"]

    whole = open_page("run", run=run_ids["complete"], view="Lineage").get("graphviz_chart")[0]
    traced = open_page(
        "run", run=run_ids["complete"], view="Lineage", trace="evaluate-rlvr/evaluation"
    )

    assert '"stage rlvr" -> "artifact ' in whole.proto.spec
    assert "evaluate-base" not in whole.proto.spec
    spec = traced.get("graphviz_chart")[0].proto.spec
    assert f'"artifact {digest}" -> "stage report"' in spec
    assert '"stage curate"' in spec


def test_tags_and_notes_are_written_to_the_registry(open_page, run_ids, registry):
    app = open_page("run", run=run_ids["complete"], view="Notes")
    run_id = run_ids["complete"]

    app.multiselect(key=f"tags {run_id}").set_value(["baseline"])
    next(b for b in app.button if b.label == "Save tags").click()
    checked(app.run())
    app.text_area(key="new note").set_value("Look at the constraints.")
    next(b for b in app.button if b.label == "Add note").click()
    checked(app.run())

    assert registry.tags(run_id) == ["baseline"]
    first, second = registry.notes(run_id)
    assert (second.text, second.author) == ("Look at the constraints.", "ann")

    app.text_area(key=f"note {second.id}").set_value("Look at the word problems.")
    app.button(key=f"save {second.id}").click()
    checked(app.run())
    app.button(key=f"delete {first.id}").click()
    checked(app.run())

    assert [note.text for note in registry.notes(run_id)] == ["Look at the word problems."]


def test_an_empty_note_is_refused_in_words(open_page, run_ids, registry):
    app = open_page("run", run=run_ids["complete"], view="Notes")

    next(b for b in app.button if b.label == "Add note").click()
    app.run()

    assert "a note needs some text" in plain(checked(app))


# --- data, pairs, evaluation, rollouts ----------------------------------------------------------


def test_the_data_page_follows_rows_from_source_to_training(open_page, run_ids):
    app = open_page("data", run=run_ids["complete"])

    assert [m.value for m in app.metric] == ["118", "100", "94", "80", "70"]
    assert len(app.get("vega_lite_chart")) == 2
    for names in (("math", "precise-if", "chat"), ("word-problems", "constraints", "small-talk")):
        assert legend(charts.colours(names)) in markup(app)


def test_rows_are_browsed_by_page_and_source(open_page, run_ids):
    app = open_page("data", run=run_ids["complete"], view="Rows", source="constraints", page="2")

    assert "9–16 of 40 rows" in plain(app)
    assert "constraints/8" in markup(app)
    assert "word-problems/" not in markup(app)


def test_the_first_page_of_a_filter_is_shown(open_page, run_ids):
    app = open_page("pairs", run=run_ids["complete"], page="4")
    assert "16–20 of 23 pairs" in plain(app)

    app.multiselect(key="skill").set_value(["math"]).run()

    assert "1–5 of 8 pairs" in plain(checked(app))


def test_pairs_are_filtered_by_model_and_margin(open_page, run_ids):
    app = open_page("pairs", run=run_ids["complete"], margin="2.0")

    assert "1–5 of 11 pairs" in plain(app)
    assert markup(app).count(">chosen</span>") == 5
    assert 'class="cv-chosen"' in markup(app)


@pytest.mark.parametrize(
    ("page", "parameters", "found"),
    [
        ("data", {"view": "Rows", "q": "WORD-problems/11"}, "1–1 of 1 rows"),
        ("data", {"view": "Contamination", "q": "has 3 apples"}, "1–1 of 1 matches"),
        ("pairs", {"q": "maybe maybe maybe maybe", "page": "9"}, "1–4 of 4 pairs"),
        ("rollouts", {"q": "word-problems/2"}, "1–3 of 3 groups"),
        ("evaluation", {"view": "Instances", "q": "she has 24 left"}, "1–2 of 2 instances"),
    ],
)
def test_rows_are_searched_by_their_text(open_page, run_ids, page, parameters, found):
    assert found in plain(open_page(page, run=run_ids["complete"], **parameters))


def test_a_pair_says_how_each_aspect_was_rated_and_why(open_page, run_ids):
    assert "The better reply" not in markup(open_page("pairs", run=run_ids["complete"]))
    shown = markup(open_page("pairs", run=run_ids["complete"], ratings="true"))

    assert shown.count("The better reply.") == shown.count("The worse reply.") == 5
    assert shown.index("The better reply.") < shown.index("The worse reply.")
    assert '<span class="cv-name">instruction following</span>2' in shown
    unjudged = open_page("pairs", run=run_ids["failed"], ratings="true")
    assert unjudged.toggle(key="ratings").disabled


def test_scores_stand_with_their_intervals_and_what_changed(open_page, run_ids):
    app = open_page("evaluation", run=run_ids["complete"])
    shown = markup(app)

    assert "sft → dpo" in shown
    assert 'class="cv-up"' in shown
    assert "small-talk:dpo&gt;sft" in shown
    assert "66.0" in shown
    _, _, changes = shown.partition("sft → dpo")
    assert 'word-problems<span class="cv-dim"> accuracy</span>' in changes


def test_the_page_of_a_run_says_which_policy_was_selected(open_page, home, tmp_path):
    run = SampleRun(home, tmp_path / "scratch", seed=31)
    made = {f"step-{s}": run.put("model", {"config.json": {"step": s}}) for s in (500, 1000)}
    run.stage("rlvr", made)
    opened = run.registry.open_stage_run(run.run_id, "select", "select", "the key")
    run.registry.start_stage_run(opened.id, {n: model.digest for n, (model, _) in made.items()})
    model = {"model": made["step-500"]}
    run.registry.succeed_stage_run(opened.id, model, metrics={"step": 500.0, "mean": 0.5})

    assert "selected step 500 of 1,000" in markup(open_page("run", run=run.finish()))


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


def test_curves_of_runs_lie_over_each_other_with_what_differs(open_page, home, run_ids, tmp_path):
    other = SampleRun(home, tmp_path / "scratch", seed=31)
    other.recipe = other.recipe.derive(sft=other.recipe.sft.derive(learning_rate=1e-3))
    other_id = other.create()
    other.model("sft", [], 1.6, 0.5)
    app = open_page("curves", run=run_ids["complete"], stage="sft", metric="loss",
                    **{"with": other_id})  # fmt: skip

    (chart,) = app.get("vega_lite_chart")
    assert f'"domain": ["{run_ids["complete"]}", "{other_id}"]' in chart.proto.spec
    assert '"title": "step"' in chart.proto.spec
    assert markup(app).count('class="cv-line"') == 2
    assert '<span class="cv-mono">sft.learning_rate</span>' in markup(app)
    assert "<td>0.001</td>" in markup(app)

    app.segmented_control(key="over").set_value("Tokens").run()
    assert "without a count of tokens" in markup(checked(app))
    app.segmented_control(key="over").set_value("Time")
    app.slider(key="smoothing").set_value(0.9)
    app.toggle(key="log").set_value(True)
    (chart,) = checked(app.run()).get("vega_lite_chart")
    assert "since the first step" in chart.proto.spec
    assert '"type": "log"' in chart.proto.spec
    app.selectbox(key="stage").set_value("rlvr").run()
    assert "no rlvr yet" in markup(checked(app))
    app.multiselect(key="metric").set_value(["kl"]).run()
    app.selectbox(key="stage").set_value("sft").run()  # which has none
    assert len(checked(app).get("vega_lite_chart")) == 4


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


# --- the command --------------------------------------------------------------------------------


def test_the_command_serves_this_machine_only_and_sends_nothing():
    arguments = command(8501)

    assert arguments[:5] == [sys.executable, "-m", "streamlit", "run", str(APP)]
    joined = " ".join(arguments)
    assert "--server.address 127.0.0.1" in joined
    assert "--browser.gatherUsageStats false" in joined


def test_no_page_imports_torch(nothing):
    views = sorted(path.stem for path in (APP.parent / "views").glob("*.py"))
    assert views == sorted(PAGES)
    code = (
        "import sys\n"
        f"for name in {sorted(m.stem for m in APP.parent.glob('*.py'))!r}:\n"
        "    if name != 'app': __import__(f'caravan_dashboard.{name}')\n"
        "from streamlit.testing.v1 import AppTest\n"
        f"app = AppTest.from_file({str(APP)!r}, default_timeout=240)\n"
        f"for view in {views!r}:\n"
        "    app.switch_page(f'views/{view}.py').run()\n"
        "    assert not app.exception, app.exception\n"
        "print(sorted({'torch', 'transformers', 'kfp'} & set(sys.modules)))\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout.strip() == "[]"

"""The page of one run: its state, its stages, its lineage, its notes."""

from __future__ import annotations

from drawn import checked, markup, plain
from sample_run import SampleRun


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


def test_the_page_of_a_run_says_which_policy_was_selected(open_page, home, tmp_path):
    run = SampleRun(home, tmp_path / "scratch", seed=31)
    made = {f"step-{s}": run.put("model", {"config.json": {"step": s}}) for s in (500, 1000)}
    run.stage("rlvr", made)
    opened = run.registry.open_stage_run(run.run_id, "select", "select", "the key")
    run.registry.start_stage_run(opened.id, {n: model.digest for n, (model, _) in made.items()})
    model = {"model": made["step-500"]}
    run.registry.succeed_stage_run(opened.id, model, metrics={"step": 500.0, "mean": 0.5})

    assert "selected step 500 of 1,000" in markup(open_page("run", run=run.finish()))

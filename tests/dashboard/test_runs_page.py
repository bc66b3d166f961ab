"""The list of runs."""

from __future__ import annotations

from drawn import checked, markup, plain

from caravan.registry import Registry, State
from caravan.stages.context import Score
from caravan_dashboard import runs


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


def test_pages_are_of_whole_lists_and_a_search_begins_with_the_first(
    open_page, home, run_ids, registry
):
    made = [new_run(registry, name) for name in ("many", "few") for _ in range(36)]
    newest_first = made[::-1]

    def shown(app) -> list[str]:
        return [run_id for run_id in newest_first if f'"./run?run={run_id}"' in markup(app)]

    app = open_page("runs", page="2")
    assert shown(app) == newest_first[25:50]
    app.text_input(key="q").set_value("MANY-").run()
    assert shown(checked(app)) == newest_first[36:61]
    assert shown(open_page("runs", page="3")) == newest_first[50:]  # and the three there were
    assert shown(open_page("runs", page="4")) == newest_first[:25]  # there is none


def test_a_text_that_is_too_long_to_search_for_does_not_break_the_page(open_page, run_ids):
    found = markup(open_page("runs", q="s " * 499))
    assert all(f"run={run_id}" in found for run_id in run_ids.values())
    open_page("runs", q="s " * 1200)


def new_run(registry, name: str) -> str:
    return registry.create_run({"name": name}, name=name, seed=17, recipe_digest="d", owner="ann")


def test_all_runs_are_in_the_table_however_many(tmp_path):
    """Models are evaluated in the first and the last part only; runs are deleted meanwhile."""
    with Registry(f"sqlite:///{tmp_path}/registry.db") as registry:
        run_ids = [new_run(registry, "many") for _ in range(2 * runs.RUNS_AT_ONCE + 1)]
        for model, run_id in (("dpo", run_ids[0]), ("sft", run_ids[-1])):
            stage = registry.open_stage_run(run_id, f"evaluate-{model}", "evaluate", model)
            registry.add_scores(stage.id, [Score("math", "accuracy", 0.25, 0, 1, 4)])
        gone = run_ids[5], run_ids[runs.RUNS_AT_ONCE]
        for run_id in gone:
            registry.update_run_state(run_id, State.CANCELLED)
        registry.delete_runs(gone)
        table = runs.table_of(run_ids, registry)

    assert table["run"].tolist() == [run_id for run_id in run_ids if run_id not in gone]
    scores = [table[model].dropna().to_dict() for model in ("dpo", "sft")]
    assert scores == [{0: 0.25}, {len(run_ids) - 3: 0.25}]


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

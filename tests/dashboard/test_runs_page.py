"""The list of runs."""

from __future__ import annotations

from drawn import checked, markup, plain


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

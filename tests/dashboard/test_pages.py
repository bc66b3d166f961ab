"""All pages, drawn in process against a real registry and a real store."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest
from drawn import checked, markup, plain

from caravan_dashboard.launch import APP

PAGES = (
    "runs", "run", "data", "pairs", "evaluation", "curves", "sweeps", "rollouts", "launch",
)  # fmt: skip


@pytest.mark.parametrize("which", ["complete", "failed", "running"])
@pytest.mark.parametrize("page", PAGES)
def test_every_page_draws_every_run(open_page, run_ids, page, which):
    app = open_page(page, run=run_ids[which])

    assert not app.error or page == "launch"


@pytest.mark.parametrize("page", PAGES)
def test_without_a_run_a_page_says_what_to_do(open_page, nothing, page):
    app = open_page(page)

    if page != "launch":
        first = "caravan sweep pocket" if page == "sweeps" else "caravan run pipelines/recipes/poc"
        assert first in plain(app)


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

"""The dashboard as its command starts it, in a real browser.

A missing browser is a failure in continuous integration: `apt-get install chromium`.
"""

from __future__ import annotations

import re
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pandas as pd
import pytest
from dashboard_server import running
from playwright.sync_api import expect
from sample_sweep import BETA, write_sweep

from caravan.registry.models import SCHEMA_VERSION
from caravan_dashboard.launch import command

pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def address(
    written: tuple[Path, dict[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """A dashboard of the runs, for tests that change none."""
    directory = tmp_path_factory.mktemp("dashboard")
    home = shutil.copytree(written[0], directory / "home")
    environment = {"HOME": str(home), "OWNER": "ann", "STALE_AFTER_SECONDS": "9999"}
    with running(
        command, directory, **{f"CARAVAN_{name}": value for name, value in environment.items()}
    ) as address:
        yield address


def test_from_the_runs_to_a_run_its_scores_and_the_launch_page(address, page, run_ids):
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    run_id = run_ids["complete"]

    page.goto(address)
    page.get_by_role("link", name=run_id).click()
    expect(page.get_by_role("cell", name="evaluate-rlvr")).to_be_visible()
    expect(page.locator('[data-testid="stMetric"]').filter(has_text="RLVR")).to_be_visible()
    expect(page).to_have_url(re.compile(f"run={run_id}"))

    page.get_by_role("link", name="All scores →").click()
    expect(page.get_by_role("cell", name="unseen-problems accuracy · unseen")).to_be_visible()
    page.get_by_text("Instances", exact=True).click()
    expect(page.get_by_text('<img src=x onerror="document.title=1">').first).to_be_visible()
    expect(page).to_have_url(re.compile("view=Instances"))

    page.get_by_role("link", name="Preference pairs").click()
    expect(page.locator("mark.cv-rejected").first).to_be_visible()

    page.goto(f"{address}/launch?recipe=pocket")
    editor = page.get_by_role("textbox", name="Recipe", exact=True)
    expect(page.get_by_text("The recipe is valid.")).to_be_visible()
    expect(editor).to_have_value(re.compile(r"\ndpo:\n"))
    mistakes = editor.input_value().replace("\ndpo:\n", "\ndpo:\n  betta: 5\n")
    longest = (
        "sampling: {temperature: 0.0, max_completion_length: 72, maximal_completion_length: 72}"
    )
    mistakes = mistakes.replace("sampling: {temperature: 0.0, max_completion_length: 72}", longest)
    editor.fill(mistakes)
    editor.press("Control+Enter")
    expect(page.get_by_text("6 things to put right")).to_be_visible()
    expect(page.get_by_role("cell", name="dpo.betta")).to_be_visible()
    whole = (
        "[...document.querySelectorAll('.cv-scroll')].every(e => e.scrollWidth <= e.clientWidth)"
    )
    assert page.evaluate(whole)
    expect(page.get_by_role("button", name="Launch")).to_be_disabled()

    assert page.title() == "Launch · pocket"  # no text of the runs has been executed
    assert {url for url in asked if not url.startswith((address, "data:", "blob:"))} == set()


def test_a_tab_is_named_after_its_page_and_run(address, page, run_ids):
    page.goto(address)
    expect(page).to_have_title("Runs · Caravan")
    page.get_by_role("link", name=run_ids["complete"]).click()
    expect(page).to_have_title(f"Run · {run_ids['complete']}")
    page.get_by_role("link", name="Data mix").click()
    expect(page).to_have_title(f"Data mix · {run_ids['complete']}")


def test_back_leaves_a_page_at_once(address, page, run_ids):
    page.goto(address)
    page.get_by_role("link", name="Evaluation").click()
    expect(page).to_have_url(re.compile(f"/evaluation[?]run={run_ids['running']}$"))
    expect(page).to_have_title(f"Evaluation · {run_ids['running']}")
    page.go_back()
    expect(page.get_by_role("heading", name="Runs")).to_be_visible()


def test_every_score_of_the_runs_is_in_view_on_a_small_screen(address, page, run_ids):
    page.set_viewport_size({"width": 1100, "height": 800})
    page.goto(address)
    best = page.get_by_role("columnheader", name="RLVR")
    expect(best).to_be_in_viewport(ratio=1)  # once the page has settled


def test_the_means_of_a_run_are_not_cut_on_a_narrow_screen(address, page, run_ids):
    page.set_viewport_size({"width": 800, "height": 800})
    page.goto(f"{address}/run?run={run_ids['complete']}")
    best = page.get_by_test_id("stMetric").filter(has_text="RLVR")
    expect(best).to_be_visible()
    assert best.bounding_box()["width"] > 120


def test_a_change_of_a_score_leads_to_the_replies_that_flipped(address, page, run_ids):
    page.goto(f"{address}/evaluation?run={run_ids['complete']}")
    changed = page.get_by_role("row").filter(has_text=re.compile("^word-problems accuracy[+]"))
    changed.get_by_role("link").last.click()
    expect(page.get_by_text("1–5 of 12 instances")).to_be_visible()
    expect(page).to_have_url(re.compile("which=Gained"))
    page.get_by_text("Mark differences").click()
    expect(page.locator("mark.cv-rejected").first).to_be_visible()
    page.go_back()
    expect(page.locator("mark.cv-rejected")).to_have_count(0)


def test_runs_and_scores_are_taken_along_as_csv(address, page, run_ids):
    def downloaded(path: str) -> pd.DataFrame:
        page.goto(address + path)
        with page.expect_download() as download:
            page.get_by_role("button", name="CSV").click()
        return pd.read_csv(download.value.path())

    complete = run_ids["complete"]
    runs = downloaded("/").set_index("run")
    assert set(runs.index) == set(run_ids.values())
    assert runs.loc[complete, ["state", "seed", "tags"]].tolist() == [
        "succeeded", 17, "<b>tag</b> baseline",
    ]  # fmt: skip
    assert runs.loc[run_ids["failed"], "tags"] == "'=1+1"
    assert runs.loc[complete, "base"] < runs.loc[complete, "rlvr"] < 1
    assert set(downloaded("/?state=failed")["run"]) == {run_ids["failed"]}

    scores = downloaded(f"/evaluation?run={complete}")
    found = scores[(scores["model"] == "rlvr") & (scores["task"] == "word-problems")]
    assert found[["run", "metric", "suite", "n"]].values.tolist() == [
        [complete, "accuracy", "dev", 120]
    ]
    assert (found["low"] < found["value"]).all()
    assert len(scores) == 4 * 4 + 1  # tasks of models, and one comparison


def test_a_run_is_the_beginning_of_another(address, page, run_ids):
    page.goto(f"{address}/run?run={run_ids['complete']}&view=Recipe")
    page.get_by_role("link", name="Launch it with changes").click()
    editor = page.get_by_role("textbox", name="Recipe", exact=True)
    expect(editor).to_have_value(re.compile(r"\nseed: 17\n"))
    editor.fill(editor.input_value().replace("seed: 17\n", "seed: 18\n"))
    editor.press("Control+Enter")
    expect(page.get_by_role("row", name="seed 17 18")).to_be_visible()
    expect(page.get_by_role("columnheader", name=run_ids["complete"])).to_be_visible()


def test_pages_are_as_dark_as_the_browser_asks_for(address, page, run_ids):
    def brightness(locator, of: str) -> float:
        found = locator.evaluate(f"e => getComputedStyle(e).{of}")
        return sum(map(float, re.findall(r"[\d.]+", found)[:3])) / 765

    for scheme, background, link, pill in (("dark", 0.15, 0.5, 0.63), ("light", 1.0, 0.35, 0.42)):
        page.emulate_media(color_scheme=scheme)
        page.goto(address)
        shown = page.get_by_role("link", name=run_ids["complete"])
        expect(shown).to_be_visible()
        assert brightness(page.get_by_test_id("stApp"), "backgroundColor") == pytest.approx(
            background, abs=0.1
        )
        assert brightness(shown, "color") == pytest.approx(link, abs=0.15)
        page.goto(f"{address}/pairs?run={run_ids['complete']}")
        label = page.locator(".cv-pill", has_text="rejected").first
        expect(label).to_be_visible()
        assert brightness(label, "color") == pytest.approx(pill, abs=0.05)


def test_a_point_of_a_curve_tells_whose_it_is(start_dashboard, page, run_ids, another_run):
    address, mine = start_dashboard(command), run_ids["complete"]
    page.goto(f"{address}/curves?run={mine}&with={another_run}&stage=sft&metric=grad_norm")
    expect(page.get_by_role("link", name=another_run)).to_be_visible()
    points = page.locator("svg .mark-symbol path")
    expect(points).to_have_count(120)
    expect(page.locator('[data-test-script-state="notRunning"]')).to_be_visible()
    points.nth(100).hover(force=True)
    tip = page.locator("#vg-tooltip-element")
    expect(tip).to_contain_text("value")
    expect(tip).to_contain_text(re.compile(f"{mine}|{another_run}"))


def test_a_registry_of_another_schema_is_told_in_the_terminal_and_on_the_page(
    home, start_dashboard, page, run_ids, tmp_path
):
    def set_version(version: str) -> None:
        with closing(sqlite3.connect(home / "registry.db")) as database:
            database.execute("UPDATE alembic_version SET version_num = ?", [version])
            database.commit()

    def started(port: int) -> list[str]:
        main = "from caravan_pipelines.cli import main; main()"
        return [sys.executable, "-c", main, "dashboard", "--port", str(port)]

    set_version("0001")
    address = start_dashboard(started)
    (log,) = tmp_path.glob("log-*")
    before, _, after = log.read_text().partition("run: caravan registry upgrade")
    assert "no page shows any run: registry sqlite:///" in before
    assert address.rpartition(":")[2] in after  # the server's own lines come later
    page.goto(address)
    expect(page.get_by_text("then run: caravan registry upgrade")).to_be_visible()

    set_version(SCHEMA_VERSION)
    page.reload()
    expect(page.get_by_role("link", name=run_ids["complete"])).to_be_visible()


def test_a_sweep_is_drawn_and_another_is_chosen(start_dashboard, home, registry, page):
    write_sweep(registry, "sweep:c0ffee", BETA, seeds=(17, 18, 19))
    write_sweep(registry, "sweep:d0ffee", {"dpo.beta": {"3": 0.0, "4": 0.0}}, seeds=[17])
    address = start_dashboard(command)
    page.goto(f"{address}/sweeps?sweep=sweep:c0ffee")
    expect(page.get_by_role("cell", name="dpo.beta=10").first).to_be_visible()
    expect(page.get_by_text("better").first).to_be_visible()
    expect(page.locator('[data-testid="stVegaLiteChart"] canvas, .vega-embed svg')).to_have_count(4)

    page.get_by_role("combobox", name="Sweep").click()
    page.get_by_role("option", name="sweep:d0ffee · pocket-mini · 2 runs").click()
    expect(page.get_by_role("cell", name="dpo.beta=4").first).to_be_visible()
    expect(page).to_have_url(re.compile("sweep=sweep%3Ad0ffee$"))
    page.get_by_role("link", name="succeeded").first.click()
    expect(page.get_by_role("heading", name="pocket-mini")).to_be_visible()


def test_an_address_of_nothing_is_told(address, page):
    page.goto(f"{address}/run?run=nobody")
    expect(page.get_by_text("no run 'nobody'; `caravan runs` lists them")).to_be_visible()
    error, header = page.get_by_test_id("stAlert"), page.get_by_test_id("stHeader")
    assert error.bounding_box()["y"] >= header.bounding_box()["height"]  # not behind it

    page.goto(f"{address}/nonsense")
    expect(page.get_by_text("Page not found")).to_be_visible()

"""A whole run from the launch page, as a user does it: launched, stopped, continued, looked at."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from playwright.sync_api import expect

from caravan.registry import Registry, State
from caravan.settings import Settings
from caravan_dashboard.launch import command

MINI = Path(__file__).resolve().parents[1] / "recipes" / "pocket-mini.yaml"


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_run_is_launched_stopped_and_continued_from_its_page(tmp_path, start_dashboard, page):
    home = tmp_path / "home"
    recipe = MINI.read_text().replace("../../pipelines/recipes/", "")
    page.goto(start_dashboard(command, CARAVAN_HOME=str(home)) + "/launch?recipe=Paste a recipe")
    editor = page.get_by_role("textbox", name="Recipe", exact=True)
    editor.fill(recipe)
    editor.press("Control+Enter")
    expect(page.get_by_text("The recipe is valid.")).to_be_visible()
    page.get_by_role("button", name="Launch").click()

    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Resume").click()

    with Registry(Settings(home=home).resolved_registry_url) as registry:
        (run,) = registry.list_runs()
        while (state := registry.get_run(run.id).state) is not State.SUCCEEDED:
            assert state is not State.FAILED, registry.get_run(run.id).error
            time.sleep(0.5)
    page.reload()
    expect(page.locator('[data-testid="stMetric"]').filter(has_text="RLVR")).to_be_visible()

"""The dashboard as its command starts it, in a real browser.

A missing browser is a failure in continuous integration: `apt-get install chromium`.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from caravan_dashboard.launch import command

SECONDS_TO_START = 120


@pytest.fixture
def address(home: Path, tmp_path: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(command(port), stdout=log, stderr=log, env=os.environ)
    try:
        wait_until_up(f"http://127.0.0.1:{port}/_stcore/health", server)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()  # it has nothing to save
        server.wait()


def wait_until_up(url: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(SECONDS_TO_START * 5):
        assert server.poll() is None, "the dashboard has ended"
        try:
            urllib.request.urlopen(url, timeout=5)
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
    raise AssertionError("the dashboard does not answer")


@pytest.fixture
def page() -> Iterator[Page]:
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("no browser: apt-get install chromium")
        pytest.skip("no browser: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1360, "height": 1000})
        page.set_default_timeout(120_000)
        expect.set_options(timeout=120_000)
        yield page
        browser.close()


def test_from_the_runs_to_a_run_its_scores_and_the_launch_page(address, page, run_ids):
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    run_id = run_ids["complete"]

    page.goto(address)
    page.get_by_role("link", name=run_id).click()
    expect(page.get_by_role("cell", name="evaluate-rlvr")).to_be_visible()
    expect(page.locator('[data-testid="stMetric"]').filter(has_text="RLVR")).to_be_visible()
    assert f"run={run_id}" in page.url

    page.get_by_role("link", name="All scores →").click()
    expect(page.get_by_role("cell", name="unseen-problems accuracy · unseen")).to_be_visible()
    page.get_by_text("Instances", exact=True).click()
    expect(page.get_by_text('<img src=x onerror="document.title=1">').first).to_be_visible()
    assert "view=Instances" in page.url

    page.get_by_role("link", name="Preference pairs").click()
    expect(page.locator("mark.cv-rejected").first).to_be_visible()

    page.goto(f"{address}/launch?recipe=tulu3-8b")
    editor = page.get_by_role("textbox", name="Recipe", exact=True)
    expect(page.get_by_text("The recipe is valid.")).to_be_visible()
    editor.fill(editor.input_value().replace("\ndpo:\n", "\ndpo:\n  betta: 5\n"))
    editor.press("Control+Enter")
    expect(page.get_by_text("1 thing to put right")).to_be_visible()
    expect(page.get_by_role("cell", name="dpo.betta")).to_be_visible()
    expect(page.get_by_role("button", name="Launch")).to_be_disabled()

    assert page.title() == "Caravan"  # no text of the runs has been executed
    assert {url for url in asked if not url.startswith((address, "data:", "blob:"))} == set()

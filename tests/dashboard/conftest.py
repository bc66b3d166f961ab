"""Runs to look at, the dashboard's server, and a browser."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import streamlit as st
from playwright.sync_api import Page, expect, sync_playwright
from streamlit.testing.v1 import AppTest

sys.path.append(str(Path(__file__).parent))  # for the modules beside this one

from dashboard_server import free_port, wait_until_up
from drawn import checked
from sample_run import SampleRun, write_runs

from caravan.registry import Registry
from caravan.settings import Settings
from caravan_dashboard.launch import APP


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    home = tmp_path_factory.mktemp("home")
    return home, write_runs(home, tmp_path_factory.mktemp("scratch"))


@pytest.fixture
def home(
    written: tuple[Path, dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A copy of the runs that a test may change, in this process's environment."""
    shutil.copytree(written[0], tmp_path / "home")
    monkeypatch.setenv("CARAVAN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CARAVAN_OWNER", "ann")
    monkeypatch.setenv("CARAVAN_STALE_AFTER_SECONDS", "9999")
    return tmp_path / "home"


@pytest.fixture
def run_ids(home: Path, written: tuple[Path, dict[str, str]]) -> dict[str, str]:
    return written[1]


@pytest.fixture
def registry(home: Path) -> Registry:
    return Registry(Settings(home=home).resolved_registry_url)


@pytest.fixture
def nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment without any run."""
    monkeypatch.setenv("CARAVAN_HOME", str(tmp_path / "nothing"))
    return tmp_path / "nothing"


@pytest.fixture
def another_run(home: Path, tmp_path: Path) -> str:
    """A second complete run, of another seed."""
    run = SampleRun(home, tmp_path / "scratch", seed=23)
    run.everything()
    return run.finish()


@pytest.fixture
def open_page(monkeypatch: pytest.MonkeyPatch) -> Callable[..., AppTest]:
    """Draw a page with these parameters in its address; it must not fail."""
    # AppTest has no browser, whose address it would have to give.
    monkeypatch.setattr(type(st.context), "ip_address", None)

    def draw(page: str, /, **parameters: str) -> AppTest:
        app = AppTest.from_file(str(APP), default_timeout=60)
        if page != "runs":  # the page that is shown without switching
            app.switch_page(f"views/{page}.py")
        app.query_params.update(parameters)
        return checked(app.run())

    return draw


@pytest.fixture
def start_dashboard(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Start the server of a command line that is given a port; gives its address when it is up."""
    servers = []

    def start(
        command: Callable[[int], list[str]], port: int | None = None, **environment: str
    ) -> str:
        port = port or free_port()
        with (tmp_path / f"log-{port}").open("wb") as log:
            server = subprocess.Popen(
                command(port), stdout=log, stderr=log, env=os.environ | environment
            )
        servers.append(server)
        wait_until_up(f"http://127.0.0.1:{port}/_stcore/health", server)
        return f"http://localhost:{port}"

    yield start
    for server in servers:
        server.kill()  # it has nothing to save
        server.wait()


@pytest.fixture
def page() -> Iterator[Page]:
    """A page of a real browser. A missing browser is a failure in continuous integration."""
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

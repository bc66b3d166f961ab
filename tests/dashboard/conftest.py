"""Runs to look at, the dashboard's server, and a browser."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import streamlit as st
from playwright.sync_api import Error, Page, expect, sync_playwright
from streamlit.testing.v1 import AppTest

sys.path.append(str(Path(__file__).parent))  # for the modules beside this one

from dashboard_server import running
from drawn import checked
from sample_run import SampleRun, write_runs

from caravan.registry import Registry, State
from caravan.settings import Settings
from caravan_dashboard.launch import APP

PAGE_SECONDS = 240
"""A server's first page takes it two seconds of imports, which are a minute where twenty processes
share two cores."""


@pytest.fixture(autouse=True)
def own_main(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streamlit leaves its page in the place of `__main__`, which every process that a later test
    spawns would run first."""
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])


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
def variant(home: Path, tmp_path: Path) -> str:
    """A run whose recipe differs from the others' in one field."""
    run = SampleRun(home, tmp_path / "scratch")
    run.registry.update_run_state(run.run_id, State.CANCELLED)
    run.registry.delete_runs([run.run_id])
    run.recipe = run.recipe.derive(dpo=run.recipe.dpo.derive(beta=2.5))
    run.create()
    run.everything()
    return run.finish()


@pytest.fixture
def open_page(monkeypatch: pytest.MonkeyPatch) -> Callable[..., AppTest]:
    """Draw a page with these parameters in its address; it must not fail."""
    # AppTest has no browser, whose address it would have to give.
    monkeypatch.setattr(type(st.context), "ip_address", None)

    def draw(page: str, /, **parameters: str) -> AppTest:
        app = AppTest.from_file(str(APP), default_timeout=240)
        if page != "runs":  # the page that is shown without switching
            app.switch_page(f"views/{page}.py")
        app.query_params.update(parameters)
        return checked(app.run())

    return draw


@pytest.fixture
def start_dashboard(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Start the server of a command line that is given a port; gives its address when it is up."""
    with ExitStack() as servers:
        yield lambda command, port=None, **environment: servers.enter_context(
            running(command, tmp_path, port, **environment)
        )


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
        page.set_default_timeout(PAGE_SECONDS * 1000)
        expect.set_options(timeout=PAGE_SECONDS * 1000)
        page.on("requestfailed", lambda request: print(f"{request.url}: {request.failure}"))
        yield page
        with suppress(Error):  # where a test fails, pytest shows what it has printed
            print(f"the page at {page.url}:\n{page.inner_text('body', timeout=5000)}")
        browser.close()

import os
import sys
from pathlib import Path

import pytest

from caravan.registry import Registry
from caravan.settings import Settings
from caravan.stages.execute import execute
from forked import Script
from waiting import wait_until

HERE = Path(__file__).parent
sys.path.append(str(HERE))  # for sample_stages


@pytest.fixture(autouse=True)
def threads(monkeypatch):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "1")


@pytest.fixture
def sample_dir():
    """Where the package `sample_stages` lies."""
    return str(HERE)


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path / "home", patience_seconds=1.0, heartbeat_seconds=0.2)


@pytest.fixture
def registry(settings):
    with Registry(settings.resolved_registry_url) as registry:
        yield registry


@pytest.fixture
def recipe_dir(tmp_path):
    directory = tmp_path / "recipe"
    directory.mkdir()
    return directory


@pytest.fixture
def new_run(registry, recipe_dir):
    def create(seed=17):
        return registry.create_run(
            {}, name="pocket", seed=seed, recipe_digest="d" * 64, recipe_dir=recipe_dir
        )

    return create


@pytest.fixture
def count(settings, new_run):
    """Execute the stage `count` in this process."""

    def call(node="sft", run_id=None, inputs=None, settings=settings, **config):
        from sample_stages.count import CountConfig

        return execute(
            node, "sample_stages.count", CountConfig(**config), inputs or {}, run_id or new_run(),
            settings,
        )  # fmt: skip

    return call


@pytest.fixture
def calls(recipe_dir):
    """How many times the stage itself has run."""

    def number():
        path = recipe_dir / "calls"
        return len(path.read_text().splitlines()) if path.exists() else 0

    return number


@pytest.fixture
def start_count(settings):
    """Execute the stage `count` in a process of its own, which prints the outputs."""
    processes = []

    def start(run_id, settings=settings, before="", **config):
        script = f"""
            import os, sys, logging
            logging.basicConfig()
            sys.path.insert(0, {str(HERE)!r})
            from sample_stages.count import CountConfig
            from caravan.stages.execute import execute
            {before}
            config = CountConfig(**{config!r})
            print(execute("sft", "sample_stages.count", config, {{}}, {run_id!r}))
        """
        process = Script(script, env=os.environ | settings.environment())
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture
def hold(recipe_dir):
    """Make the stage wait at a step; `.until_reached()`, `.release()`."""

    class Hold:
        def at(self, step):
            aside = recipe_dir / "hold-at.new"
            aside.write_text(str(step))
            aside.replace(recipe_dir / "hold-at")  # a stage that looks meanwhile sees a number

        def until_reached(self):
            step = (recipe_dir / "hold-at").read_text()
            wait_until((recipe_dir / f"holding-{step}").exists)

        def release(self):
            (recipe_dir / "hold-at").unlink()
            for held in recipe_dir.glob("holding-*"):
                held.unlink()

    return Hold()

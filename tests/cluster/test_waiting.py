"""Waiting for a TrainJob: what the registry says meanwhile, and an API that is away or too old.

With a real API it is waited for in `test_trainjob.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from trainer_api import ENDED_AT, TrainerApi

from caravan.cluster import trainjob
from caravan.cluster.profile import ClusterProfile
from caravan.cluster.trainjob import ApiAwayError, JobFailedError, TrainJobs, train_job
from caravan.errors import StageError
from caravan.recipe import Resources
from caravan.recipe.io import load_recipe, recipe_digest
from caravan.registry import Registry, StageRunRow, State
from caravan.settings import Settings, load_settings
from caravan.stages import sft
from caravan.stages.key import stage_key, stage_seed
from caravan_command import MINI
from caravan_pipelines import on_nodes
from caravan_pipelines.graph import find_node
from caravan_pipelines.run_data import recipe_of, run_of
from waiting import wait_until

JOB = train_job("run-1", "sft", ["true"], Resources(nodes=2), ClusterProfile())
NAME = JOB["metadata"]["name"]
INPUTS = {"model": "a" * 64, "dataset": "d" * 64}


@pytest.fixture
def new_api() -> Iterator[Callable[..., TrainerApi]]:
    made: list[TrainerApi] = []

    def new(**options: Any) -> TrainerApi:
        made.append(TrainerApi(**options))
        return made[-1]

    yield new
    for api in made:
        api.close()


def test_an_api_that_does_not_answer_for_a_while_is_waited_for(new_api):
    api, lines = new_api(drops=10), []
    waiting = threading.Thread(
        target=TrainJobs(api.client, "research").run,
        args=(JOB, lines.append),
        kwargs={"poll_seconds": 0.05},
    )
    waiting.start()
    wait_until(lambda: NAME in api.jobs)
    api.drops = 10
    wait_until(lambda: not api.drops)
    api.end(NAME, "Complete")
    api.drops = 10
    waiting.join(120)

    assert not waiting.is_alive()
    assert not api.drops
    assert api.jobs == {}
    assert api.created == 1
    assert lines[0] == f"TrainJob {NAME} created"


def test_an_api_that_is_away_for_long_is_no_failure_of_the_job(new_api, monkeypatch):
    monkeypatch.setattr(trainjob, "AWAY_SECONDS", 0.3)
    api = new_api()
    jobs = TrainJobs(api.client, "research")
    api.close()

    with pytest.raises(ApiAwayError, match=f"nobody waits for TrainJob {NAME}"):
        jobs.run(JOB, print, poll_seconds=0.05)


def test_a_trainer_that_forgets_what_we_ask_of_it_is_too_old(new_api):
    api = new_api(unknown="runtimePatches")
    with pytest.raises(StageError, match=r"install Kubeflow Trainer 2\.2 or later"):
        TrainJobs(api.client, "research").run(JOB, print, poll_seconds=0.05)
    assert api.created == 1
    assert api.jobs == {}


def test_a_job_runs_until_it_has_ended(new_api):
    api = new_api()
    jobs = TrainJobs(api.client, "research")
    assert not jobs.runs(NAME)
    api.jobs[NAME] = dict(JOB)
    assert jobs.runs(NAME)
    api.end(NAME, "Failed")
    assert not jobs.runs(NAME)


def test_a_job_that_failed_says_why_and_when(new_api):
    api, found = new_api(), []

    def wait() -> None:
        with pytest.raises(JobFailedError) as failed:
            TrainJobs(api.client, "research").run(JOB, print, poll_seconds=0.05)
        found.append(failed.value)

    waiting = threading.Thread(target=wait)
    waiting.start()
    wait_until(lambda: NAME in api.jobs)
    api.end(NAME, "Failed")
    waiting.join(120)
    assert str(found[0]) == f"TrainJob {NAME} failed: because"
    assert found[0].at == datetime.fromisoformat(ENDED_AT)


# --- the books ----------------------------------------------------------------------------------


class Books:
    """The step of a stage on two nodes, whose jobs are functions of the test."""

    def __init__(self, settings: Settings, jobs: Jobs) -> None:
        self.settings, self.jobs = settings, jobs
        recipe = load_recipe(MINI, ["sft.resources.nodes=2"])
        self.registry = Registry(settings.resolved_registry_url)
        self.run_id = self.registry.create_run(
            recipe.model_dump(mode="json"), name=recipe.name, seed=recipe.seed,
            recipe_digest=recipe_digest(recipe),
        )  # fmt: skip
        self.node = find_node(recipe, "sft")

    def wait(self, job: Callable[[], None], *, runs: bool = False) -> None:
        self.jobs.job, self.jobs.is_there = job, runs
        on_nodes.wait_for_job(self.node, self.run_id, INPUTS, self.settings, recipe_dir=Path())

    def open_on_the_first_node(self) -> int:
        """As `execute` does there."""
        seed = stage_seed(self.registry.get_run(self.run_id).seed, "sft")
        key = stage_key(sft, self.node.config, INPUTS, seed, recipe_dir=Path())
        return self.registry.open_stage_run(self.run_id, "sft", "sft", key).id

    def stage(self) -> StageRunRow:
        (stage,) = self.registry.stage_runs(self.run_id)
        return stage


class Jobs:
    """`TrainJobs` with one job."""

    def __init__(self) -> None:
        self.job: Callable[[], None] = lambda: None
        self.is_there = False

    def runs(self, name: str) -> bool:
        assert name.startswith("sft-")
        return self.is_there

    def run(self, *_: object, **__: object) -> None:
        self.job()


@pytest.fixture
def books(tmp_path, monkeypatch) -> Iterator[Books]:
    monkeypatch.setenv("CARAVAN_HOME", str(tmp_path))
    jobs = Jobs()
    monkeypatch.setattr(on_nodes, "TrainJobs", lambda *_: jobs)
    monkeypatch.setattr(on_nodes, "kubernetes_api", lambda *_: object())
    for cached in (run_of, recipe_of):
        cached.cache_clear()
    made = Books(load_settings(), jobs)
    yield made
    made.registry.close()


def failed() -> None:
    raise StageError("TrainJob sft failed: killed for memory")


def test_every_failed_job_counts_once_and_the_stage_is_open_while_the_next_one_waits(books):
    seen = []

    def fails_before_its_first_node_starts() -> None:
        seen.append((books.stage().state, books.stage().error))
        failed()

    def is_stopped_as_another_node_failed() -> None:
        seen.append((books.stage().state, books.stage().error))
        books.registry.start_stage_run(books.stage().id, pod="node-0")
        books.registry.finish_stage_run(books.stage().id, State.CANCELLED, error="stopped")
        failed()

    def fails_on_its_first_node() -> None:
        seen.append((books.stage().state, books.stage().error))
        opened = books.open_on_the_first_node()
        books.registry.finish_stage_run(opened, State.FAILED, error="too large")
        failed()

    for job in (
        fails_before_its_first_node_starts,
        is_stopped_as_another_node_failed,
        fails_on_its_first_node,
    ):
        with pytest.raises(StageError, match="killed for memory"):
            books.wait(job)

    assert seen == [(State.PENDING, None)] * 3
    assert (books.stage().state, books.stage().failures) == (State.FAILED, 3)
    assert books.stage().error == "too large"


def test_a_stage_ends_when_its_job_failed(books):
    at = datetime.now(UTC) + timedelta(hours=1)

    def failed_while_nobody_asked() -> None:
        books.registry.start_stage_run(books.stage().id, pod="node-0")
        raise JobFailedError("its node was lost", at)

    with pytest.raises(StageError, match="its node was lost"):
        books.wait(failed_while_nobody_asked)
    assert (books.stage().state, books.stage().finished_at) == (State.FAILED, at)


def test_the_books_of_a_job_that_runs_already_are_left_to_its_first_node(books):
    def lose_the_waiting_pod() -> None:
        books.registry.start_stage_run(books.stage().id, pod="node-0")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        books.wait(lose_the_waiting_pod)
    seen = []

    def goes_on() -> None:
        seen.append((books.stage().state, books.stage().pod))
        books.registry.succeed_stage_run(books.stage().id, {})

    books.wait(goes_on, runs=True)
    assert seen == [(State.RUNNING, "node-0")]
    assert (books.stage().state, books.stage().attempt) == (State.SUCCEEDED, 1)


def test_an_api_that_is_away_leaves_the_books_open(books):
    def away() -> None:
        raise ApiAwayError("not answered")

    with pytest.raises(ApiAwayError):
        books.wait(away)
    assert (books.stage().state, books.stage().failures) == (State.PENDING, 0)


NODE = """
import logging, sys
from caravan_pipelines import on_nodes
on_nodes.train_here = lambda *_: logging.getLogger("any.library").info("begun")
sys.argv[1:] = ["run-1", "sft", "{}"]
on_nodes.main()
"""


def test_the_log_of_a_node_names_run_and_stage():
    done = subprocess.run(
        [sys.executable, "-c", NODE], env=os.environ | {"CARAVAN_LOG_FORMAT": "json"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    line = json.loads(done.stderr.splitlines()[-1])
    assert (line["message"], line["run"], line["stage"]) == ("begun", "run-1", "sft")

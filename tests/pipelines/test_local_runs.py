"""Local runs under disturbance: a registry that is away, two starts at once, a dead parent."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from caravan.errors import CaravanError, RegistryUnavailableError
from caravan.recipe.io import load_recipe
from caravan.registry import Registry, State
from caravan.settings import Settings
from caravan_pipelines.cli import follow as following
from caravan_pipelines.cli import run as command
from caravan_pipelines.cli.follow import follow
from caravan_pipelines.launch import local, lock
from caravan_pipelines.launch.lock import acquire, holder

NOW = datetime.now(UTC)

HOLD = "import os, sys, time; from pathlib import Path; " \
    "from caravan_pipelines.launch.lock import acquire, name_holder; " \
    "name_holder(acquire(Path(sys.argv[1])), os.getpid()); " \
    "print('held', flush=True); time.sleep(60)"  # fmt: skip


@pytest.fixture
def hold():
    """Holds a lock in another process, whose id it gives."""
    started = []

    def start(path):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process.pid

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def settings(tmp_path):
    return Settings(home=tmp_path / "home", patience_seconds=20)


@pytest.fixture
def run_id(settings, mini):
    return local.create_run(load_recipe(mini), settings, recipe_dir=mini.parent)


def test_a_registry_that_restarts_does_not_end_what_follows_a_run(stoppable_postgres, mini):
    recipe = load_recipe(mini)
    with Registry(stoppable_postgres.url) as registry:
        run_id = registry.create_run(
            recipe.model_dump(mode="json"), name="mini", seed=1, recipe_digest="d" * 64
        )

        def looks() -> Iterator[bool]:
            """Whether the run has ended, each time that it is asked."""
            yield False
            stoppable_postgres.stop()
            yield from (False, False, True)

        ended, shown = looks(), Console(file=io.StringIO())
        follow(recipe, run_id, registry, lambda: next(ended), shown, 120, NOW)

        with pytest.raises(RegistryUnavailableError):
            follow(recipe, run_id, registry, lambda: False, shown, 0.5, NOW)

        threading.Timer(1.0, stoppable_postgres.start).start()
        lost = local.LocalRun(run_id, subprocess.Popen(["true"]), mini)
        with pytest.raises(SystemExit):
            command._finish(run_id, registry, Settings(patience_seconds=120), lost, shown)
        run = registry.get_run(run_id)
        assert (run.state, "ended without a word" in run.error) == (State.FAILED, True)


def test_what_an_earlier_attempt_finished_is_not_told_as_done_now(run_id, settings, mini):
    with Registry(settings.resolved_registry_url) as registry:
        for node in ("base", "sft"):
            stage = registry.open_stage_run(run_id, node, node, node)
            registry.start_stage_run(stage.id, {})
            registry.succeed_stage_run(stage.id, {})
        since = datetime.now(UTC)
        again = registry.open_stage_run(run_id, "sft", "sft", "other inputs")
        registry.start_stage_run(again.id, {})
        registry.succeed_stage_run(again.id, {})
        shown = Console(file=io.StringIO())
        follow(load_recipe(mini), run_id, registry, lambda: True, shown, 20, since)

    assert [line.split()[:2] for line in shown.file.getvalue().splitlines()] == [
        ["sft", "succeeded"]
    ]


def test_training_is_told_of_as_it_goes(run_id, settings, mini, monkeypatch):
    monkeypatch.setattr(following, "LINE_SECONDS", 0.0)
    with Registry(settings.resolved_registry_url) as registry:
        stage = registry.open_stage_run(run_id, "dpo", "dpo", "k")
        registry.start_stage_run(stage.id)
        registry.heartbeat(stage.id, (3, 12))
        began = registry.stage_run(stage.id).started_at
        for step in (1, 2, 3):
            values = {"loss": 0.69314, "rewards/accuracies": 0.75, "rewards/margins": 0.5,
                      "grad_norm": 3.0, "perf/tokens_per_second": 5400.0}  # fmt: skip
            at = began + timedelta(seconds=10 * step)
            registry.log_points(
                stage.id, [(step, name, value, at) for name, value in values.items()]
            )
        words = "step 3 of 12  loss 0.6931  accuracy 75.0%  margin 0.5  5,400 tokens/s"

        piped = Console(file=io.StringIO())
        terminal = Console(file=io.StringIO(), force_terminal=True, width=120, height=60)
        for console in (piped, terminal):
            ended = iter([False, False, True])
            follow(load_recipe(mini), run_id, registry, lambda e=ended: next(e), console, 20, NOW)

        assert f"{words}  1 min 30 s left" in piped.file.getvalue()
        assert f"{words}  1 min 30 s left" in terminal.file.getvalue()
        registry.succeed_stage_run(stage.id, {})
        piped.file.truncate(0)
        follow(load_recipe(mini), run_id, registry, lambda: True, piped, 20, NOW)
        assert piped.file.getvalue().rstrip().endswith(words)


def test_what_goes_on_is_seen_in_a_terminal_too_low_for_all_stages(run_id, settings, mini):
    with Registry(settings.resolved_registry_url) as registry:
        for node in ("curate", "synthesize", "decontaminate", "mix", "base"):
            stage = registry.open_stage_run(run_id, node, node, node)
            registry.start_stage_run(stage.id)
            registry.heartbeat(stage.id, None, (2, f"{node} has something to say. " * 9))
            registry.succeed_stage_run(stage.id, {})
        stage = registry.open_stage_run(run_id, "sft", "sft", "sft")
        registry.start_stage_run(stage.id)
        low = Console(file=io.StringIO(), force_terminal=True, width=80, height=8)
        ended = iter([False, True])
        follow(load_recipe(mini), run_id, registry, lambda: next(ended), low, 20, NOW)
    shown = low.file.getvalue()
    assert ("sft" in shown, "running" in shown, "mix" in shown) == (True, True, False)


def test_the_slower_of_two_starts_leaves_the_run_of_the_faster_alone(run_id, settings, hold):
    directory = local.run_dir(settings, run_id)
    directory.mkdir()
    with Registry(settings.resolved_registry_url) as registry:
        registry.update_run_state(run_id, State.RUNNING)
        stage = registry.open_stage_run(run_id, "sft", "sft", "k")
        registry.start_stage_run(stage.id)
        ours = subprocess.Popen(["false"])
        pid = hold(directory / "lock")

        with pytest.raises(CaravanError, match=f"is being executed by process {pid}: follow"):
            command._finish(
                run_id, registry, settings,
                local.LocalRun(run_id, ours, directory / "log.txt"), Console(file=io.StringIO()),
            )  # fmt: skip

        assert registry.get_run(run_id).state is State.RUNNING
        assert registry.stage_runs(run_id)[0].state is State.RUNNING


def test_the_holder_is_never_an_id_that_stands_for_nobody(tmp_path, hold, monkeypatch):
    path = tmp_path / "lock"
    assert holder(path) is None
    pid = hold(path)
    assert holder(path) == pid

    dead = subprocess.Popen(["true"])
    dead.wait()
    for content in ("", str(dead.pid)):  # the holder has not written its own id yet
        path.write_text(content)
        with monkeypatch.context() as patient:
            patient.setattr(lock, "TRY_SECONDS", 60.0)
            threading.Timer(0.3, path.write_text, [str(pid)]).start()
            assert holder(path) == pid
    path.write_text("")
    with pytest.raises(CaravanError, match="not seen from here"):
        holder(path)


def test_who_asks_for_the_holder_does_not_keep_others_from_the_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "TRY_SECONDS", 60.0)
    path = tmp_path / "lock"
    asking = acquire(path)
    threading.Timer(0.3, os.close, [asking]).start()
    os.close(acquire(path))
    assert holder(path) is None


def test_a_run_whose_recipe_cannot_be_read_has_failed_in_a_sentence(settings, mini, capsys):
    data = load_recipe(mini).model_dump(mode="json")
    data["sft"]["learning_rate"] = None
    with Registry(settings.resolved_registry_url) as registry:
        run_id = registry.create_run(
            data, name="broken", seed=1, recipe_digest="d" * 64, recipe_dir=mini.parent
        )
        with pytest.raises(SystemExit, match="1"):
            command.execute(run_id, settings, detach=False)
        run = registry.get_run(run_id)

    assert run.state is State.FAILED
    assert "sft.learning_rate: expected a number; got nothing" in run.error
    assert run.error in capsys.readouterr().out


def test_a_run_can_be_stopped_from_its_first_moment(run_id, settings):
    started = local.start(run_id, settings, detached=True)
    local.cancel(run_id, settings)

    assert started.process.wait(timeout=120) == 1
    with Registry(settings.resolved_registry_url) as registry:
        assert registry.get_run(run_id).state is State.CANCELLED
        assert all(stage.state.finished for stage in registry.stage_runs(run_id))
    with pytest.raises(CaravanError, match="not being executed"):
        local.cancel(run_id, settings)


def test_a_run_can_be_resumed_as_soon_as_it_is_told_to_have_ended(run_id, settings):
    """Though the process that executed it may not have ended."""
    first = local.start(run_id, settings, detached=True)
    local.cancel(run_id, settings)
    deadline = time.monotonic() + 120
    with Registry(settings.resolved_registry_url) as registry:
        while registry.get_run(run_id).state is not State.CANCELLED:
            assert time.monotonic() < deadline, "the run goes on"
    second = local.start(run_id, settings, detached=True)
    with pytest.raises(CaravanError, match=f"is being executed by process {second.process.pid}"):
        local.start(run_id, settings, detached=True)
    local.cancel(run_id, settings)
    assert [one.process.wait(timeout=120) for one in (first, second)] == [1, 1]


def test_a_home_that_cannot_be_written_to_is_told_before_a_run_is_registered(tmp_path, mini):
    home = tmp_path / "home"
    home.mkdir()
    (home / "runs").write_text("in the way")
    settings = Settings(home=home, registry_url=f"sqlite:///{tmp_path}/registry.db")

    with pytest.raises(CaravanError, match=r"home/runs: .*CARAVAN_HOME names another place"):
        local.create_run(load_recipe(mini), settings, recipe_dir=mini.parent)
    with pytest.raises(CaravanError, match="CARAVAN_HOME names another place"):
        local.start("some-run", settings)
    assert not (tmp_path / "registry.db").exists()


def test_a_run_ends_whose_command_was_killed_before_it_could_watch(run_id, settings):
    script = (
        "import os, sys; from caravan.settings import load_settings; "
        "from caravan_pipelines.launch.local import start; "
        f"print(start({run_id!r}, load_settings()).process.pid, flush=True); "
        "os.kill(os.getpid(), 9)"
    )
    started = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | settings.environment(),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert started.returncode == -signal.SIGKILL, started.stderr
    pid, deadline = int(started.stdout), time.monotonic() + 120
    while os.path.exists(f"/proc/{pid}") and "Z" not in state_of(pid):
        assert time.monotonic() < deadline, "the run goes on without its command"
        time.sleep(0.1)
    with Registry(settings.resolved_registry_url) as registry:
        assert registry.get_run(run_id).state in (State.PENDING, State.CANCELLED)


def state_of(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def test_the_night_after_a_run_was_lost_is_no_time_of_its_stage(run_id, settings):
    with Registry(settings.resolved_registry_url) as registry:
        opened = registry.open_stage_run(run_id, "sft", "sft", "key")
        registry.start_stage_run(opened.id)
        time.sleep(0.1)
        registry.heartbeat(opened.id)
        alive = registry.stage_run(opened.id)
        time.sleep(0.1)  # its process was killed
        local.close_open_stages(run_id, registry, State.CANCELLED)
        registry.open_stage_run(run_id, "sft", "sft", "key")
        worked = (alive.heartbeat_at - alive.started_at).total_seconds()
        assert registry.stage_run(opened.id).total_seconds == pytest.approx(worked)

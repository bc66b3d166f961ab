"""The process that executes one run with `kfp.local`; `launch.local.start` starts it.

Its output is the run's log. It inherits the run's lock, so a run is executed by one process at a
time, and a stop that is held back until it can be obeyed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from types import FrameType

from caravan.operations.traces import run_span
from caravan.orphans import die_with_parent, launcher_environment
from caravan.recipe import Recipe
from caravan.registry import Registry
from caravan.registry.states import State
from caravan.settings import Settings, load_settings
from caravan.stages.patience import patiently
from caravan_pipelines.launch.local import LOST, STOP, close_open_stages, run_dir
from caravan_pipelines.run_data import stored_recipe

STOP_AGAIN_SECONDS = 0.5


def execute_run(run_id: str, settings: Settings) -> State:
    """Run the pipeline of `run_id` to its end; returns the state it ended in."""
    stopped = threading.Event()

    def stop(_signal: int, _frame: FrameType | None) -> None:
        if not stopped.is_set():
            stopped.set()
            threading.Thread(target=_stop_steps, daemon=True).start()

    signal.signal(STOP, stop)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {STOP})
    patience = settings.patience_seconds
    with patiently(lambda: Registry(settings.resolved_registry_url), patience) as registry:
        run = patiently(lambda: registry.get_run(run_id), patience)
        patiently(lambda: close_open_stages(run_id, registry, State.CANCELLED), patience)
        patiently(lambda: registry.update_run_state(run_id, State.RUNNING), patience)
        beat = threading.Thread(target=_heartbeat, args=(run_id, settings, stopped), daemon=True)
        beat.start()
        os.environ |= launcher_environment()
        error = None
        try:
            recipe = stored_recipe(run)
            with run_span(run_id, {"caravan.recipe": recipe.name}):
                _run_pipeline(recipe, run_id, settings)
            state = State.SUCCEEDED
        except Exception as failure:
            state, error = (State.CANCELLED, None) if stopped.is_set() else (State.FAILED, failure)
            # Where a step failed or was stopped, it has said why: KFP's traceback is only that of
            # its waiting for it.
            if not error or patiently(lambda: _has_told(run_id, registry), patience):
                print(f"run {run_id} {state}" + (f": {error}" if error else ""))
            else:
                traceback.print_exc()
        reason = str(error) if error else None
        patiently(lambda: _close(run_id, registry, state), patience)
        patiently(lambda: registry.update_run_state(run_id, state, error=reason), patience)
    return state


def _close(run_id: str, registry: Registry, state: State) -> None:
    """End the stages that are still open. Where a run failed and none says that it did, they are
    those whose process is gone."""
    if state is State.FAILED and not _has_told(run_id, registry):
        close_open_stages(run_id, registry, State.FAILED, LOST)
    close_open_stages(run_id, registry, State.CANCELLED)


def _has_told(run_id: str, registry: Registry) -> bool:
    """Whether a stage has said that it failed."""
    return any(stage.state is State.FAILED for stage in registry.stage_runs(run_id))


def _run_pipeline(recipe: Recipe, run_id: str, settings: Settings) -> None:
    from kfp import local
    from kfp.local.logging_utils import Color

    from caravan_pipelines.pipeline import build_pipeline

    root = run_dir(settings, run_id) / "kfp"
    shutil.rmtree(root, ignore_errors=True)
    for colour in [name for name in vars(Color) if name.isupper()]:
        setattr(Color, colour, "")  # the log is a file
    local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=str(root))
    build_pipeline(recipe)(run=run_id)


def _stop_steps() -> None:
    """Ask the steps to stop until the pipeline ends: it still starts those that depend on none."""
    while True:
        os.killpg(os.getpgrp(), STOP)  # ours: the launcher made this process its leader
        time.sleep(STOP_AGAIN_SECONDS)


def _heartbeat(run_id: str, settings: Settings, stopped: threading.Event) -> None:
    opened = patiently(lambda: Registry(settings.resolved_registry_url), settings.patience_seconds)
    with opened as registry:
        while not stopped.wait(settings.heartbeat_seconds):
            try:
                registry.heartbeat_run(run_id)
            except Exception:  # the registry is away: the next beat tells
                traceback.print_exc()


def main() -> None:
    parser = argparse.ArgumentParser(prog="caravan_pipelines.launch.runner")
    parser.add_argument("run")
    parser.add_argument("--lock", type=int, required=True, help="descriptor of the run's lock")
    parser.add_argument("--detached", action="store_true", help="outlive the launching process")
    arguments = parser.parse_args()
    os.set_inheritable(arguments.lock, False)
    if not arguments.detached:
        die_with_parent()
    state = execute_run(arguments.run, load_settings())
    os.close(arguments.lock)  # the run may be resumed; ending takes a busy machine seconds
    sys.exit(0 if state is State.SUCCEEDED else 1)


if __name__ == "__main__":
    main()

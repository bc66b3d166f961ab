"""Stages in processes of their own: killed, stopped, two at once, and with a registry away."""

import ast
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from caravan.interruption import CONTINUE_EXIT_CODE
from caravan.registry import Registry, State
from caravan.settings import Settings
from caravan.store import open_store
from waiting import wait_until


def finish(process):
    assert process.wait() == 0, process.stderr
    return ast.literal_eval(process.stdout)


def undisturbed(count, new_run, tmp_path, recipe_dir):
    """The outputs of the same stage where nothing happens, elsewhere."""
    elsewhere = Settings(home=tmp_path / "elsewhere")
    with Registry(elsewhere.resolved_registry_url) as registry:
        run_id = registry.create_run(
            {}, name="pocket", seed=17, recipe_digest="d" * 64, recipe_dir=recipe_dir
        )
    return count(run_id=run_id, settings=elsewhere)


def test_a_killed_stage_goes_on_from_its_checkpoint_to_the_same_end(
    count, start_count, hold, new_run, registry, settings, calls, tmp_path, recipe_dir
):
    run_id = new_run()
    hold.at(3)
    process = start_count(run_id)
    hold.until_reached()
    wait_until(lambda: registry.stage_runs(run_id)[0].progress_done == 3)
    process.kill()
    process.wait()
    hold.release()

    with Registry(settings.resolved_registry_url, stale_after_seconds=0.1) as impatient:
        time.sleep(0.2)
        assert impatient.stage_runs(run_id)[0].state is State.INTERRUPTED
    assert registry.artifacts() == []
    outputs = finish(start_count(run_id))

    assert calls() == 2
    [stage] = registry.stage_runs(run_id)
    assert (stage.state, stage.attempt) == (State.SUCCEEDED, 2)
    assert [m.step for m in registry.metrics(stage.id)] == [1, 2, 3, 4, 5]
    assert list(settings.work_dir.iterdir()) == []
    assert outputs == undisturbed(count, new_run, tmp_path, recipe_dir)


DIE = "lambda *_, **__: os.kill(os.getpid(), 9)"


@pytest.mark.parametrize(
    ("before", "calls_expected"),
    [
        (f"from caravan.store.directory import DirectoryStore as D; D._commit = {DIE}", 1),
        (f"from caravan.registry import Registry as R; R.succeed_stage_run = {DIE}", 1),
        (f"from caravan.stages import made as e; e.Made.save = {DIE}", 2),
        (f"import shutil; shutil.rmtree = {DIE}", 1),
    ],
    ids=["while publishing", "after publishing", "before all was made", "after all was recorded"],
)  # fmt: skip
def test_killed_at_a_bad_moment(
    before, calls_expected, count, start_count, new_run, registry, settings, calls
):
    run_id = new_run()
    killed = start_count(run_id, before=before)
    assert killed.wait() == -signal.SIGKILL, killed.stderr

    outputs = finish(start_count(run_id))

    assert calls() == calls_expected
    assert registry.stage_runs(run_id)[0].state is State.SUCCEEDED
    store = open_store(settings=settings)
    for digest in outputs.values():
        store.verify(digest)
    assert list((store.root / "tmp").iterdir()) == []
    assert [p for p in settings.work_dir.iterdir() if p.is_dir()] == []


def test_of_two_at_the_same_work_the_second_waits_and_reuses(
    start_count, hold, new_run, registry, calls
):
    first, second = new_run(), new_run()
    hold.at(2)
    one = start_count(first)
    hold.until_reached()
    two = start_count(second)
    wait_until(lambda: registry.stage_runs(second))
    time.sleep(0.5)
    assert registry.stage_runs(second)[0].state is State.PENDING
    hold.release()

    assert finish(one) == finish(two)
    assert calls() == 1
    assert registry.stage_runs(second)[0].reused_from == registry.stage_runs(first)[0].id


def test_the_second_takes_over_when_the_first_is_killed(
    start_count, hold, new_run, registry, calls
):
    first, second = new_run(), new_run()
    hold.at(2)
    one = start_count(first)
    hold.until_reached()
    two = start_count(second)
    wait_until(lambda: registry.stage_runs(second))
    one.kill()
    one.wait()
    hold.release()

    finish(two)
    assert calls() == 2
    [stage] = registry.stage_runs(second)
    assert (stage.state, stage.reused_from) == (State.SUCCEEDED, None)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_stage_is_cancelled_and_can_be_resumed(
    number, start_count, hold, new_run, registry, settings, calls
):
    run_id = new_run()
    hold.at(3)
    process = start_count(run_id)
    hold.until_reached()
    process.send_signal(number)
    process.wait()

    [stage] = registry.stage_runs(run_id)
    assert (stage.state, stage.error) == (State.CANCELLED, f"stopped by {number.name}")
    assert process.poll() == {signal.SIGTERM: CONTINUE_EXIT_CODE, signal.SIGINT: 1}[number]
    assert ("KeyboardInterrupt" in process.stderr) == (number == signal.SIGINT)
    [work] = [p for p in settings.work_dir.iterdir() if p.is_dir()]
    assert (work / "scratch" / "step").read_text() == "3"

    hold.release()
    finish(start_count(run_id))
    assert registry.stage_runs(run_id)[0].state is State.SUCCEEDED


def test_a_stage_ends_when_its_parent_is_killed(
    hold, new_run, registry, settings, recipe_dir, sample_dir
):
    run_id = new_run()
    hold.at(3)
    child = textwrap.dedent(f"""
        import sys; sys.path.insert(0, {sample_dir!r})
        from sample_stages.count import CountConfig
        from caravan.orphans import die_with_parent
        from caravan.stages.execute import execute
        die_with_parent()
        execute("sft", "sample_stages.count", CountConfig(), {{}}, {run_id!r})
    """)
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen(
        [sys.executable, "-c", parent], env=os.environ | settings.environment()
    )
    hold.until_reached()
    process.kill()
    process.wait()

    wait_until(lambda: registry.stage_runs(run_id)[0].state is State.CANCELLED)


def test_a_stage_ends_when_its_launcher_is_killed_though_its_parent_lives(
    hold, new_run, registry, settings, sample_dir
):
    run_id = new_run()
    hold.at(3)
    child = textwrap.dedent(f"""
        import sys; sys.path.insert(0, {sample_dir!r})
        from sample_stages.count import CountConfig
        from caravan.orphans import die_with_parent
        from caravan.stages.execute import execute
        die_with_parent()
        execute("sft", "sample_stages.count", CountConfig(), {{}}, {run_id!r})
    """)
    between = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    launcher = textwrap.dedent(f"""
        import os, subprocess, sys
        from caravan.orphans import launcher_environment
        subprocess.run([sys.executable, '-c', {between!r}], env=os.environ | launcher_environment())
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", launcher], env=os.environ | settings.environment()
    )
    hold.until_reached()
    process.kill()
    process.wait()

    wait_until(lambda: registry.stage_runs(run_id)[0].state is State.CANCELLED)


def test_nothing_is_lost_while_the_registry_is_away(
    stoppable_postgres, start_count, hold, settings, recipe_dir, tmp_path
):
    url = stoppable_postgres.url
    settings = Settings(
        home=settings.home, registry_url=url, patience_seconds=60, heartbeat_seconds=0.2
    )
    with Registry(url) as registry:
        run_id = registry.create_run(
            {}, name="pocket", seed=17, recipe_digest="d" * 64, recipe_dir=recipe_dir
        )
        hold.at(2)
        process = start_count(run_id, settings=settings)
        hold.until_reached()
        wait_until(lambda: len(registry.metrics(registry.stage_runs(run_id)[0].id)) == 2)

    stoppable_postgres.stop()
    hold.release()
    wait_until(lambda: list(settings.work_dir.glob("*/made.json")))
    time.sleep(1.5)  # it now tries, and tries again
    assert process.poll() is None, process.stderr
    stoppable_postgres.start()

    finish(process)
    with Registry(url) as registry:
        [stage] = registry.stage_runs(run_id)
        assert stage.state is State.SUCCEEDED
        assert [m.step for m in registry.metrics(stage.id)] == [1, 2, 3, 4, 5]


def test_what_a_killed_process_measured_while_the_registry_was_away_arrives_once(
    stoppable_postgres, start_count, hold, settings, recipe_dir
):
    url = stoppable_postgres.url
    settings = Settings(
        home=settings.home, registry_url=url, patience_seconds=60, heartbeat_seconds=0.2
    )
    with Registry(url) as registry:
        run_id = registry.create_run(
            {}, name="pocket", seed=17, recipe_digest="d" * 64, recipe_dir=recipe_dir
        )
        hold.at(2)
        process = start_count(run_id, settings=settings)
        hold.until_reached()
        wait_until(lambda: len(registry.metrics(registry.stage_runs(run_id)[0].id)) == 2)

    stoppable_postgres.stop()
    hold.at(4)
    hold.until_reached()  # two more points, which only the work directory has
    process.kill()
    process.wait()
    stoppable_postgres.start()
    hold.release()

    finish(start_count(run_id, settings=settings))  # goes on behind step 4
    with Registry(url) as registry:
        [stage] = registry.stage_runs(run_id)
        points = [(m.step, m.value) for m in registry.metrics(stage.id, names=["value"])]
        assert points == [(step, step * 1.5) for step in (1, 2, 3, 4, 5)]


def test_a_stage_on_postgres_and_s3(postgres_url, s3_settings, start_count, recipe_dir):
    values = {n: getattr(s3_settings, n) for n in type(s3_settings).model_fields}
    settings = Settings(**values | {"registry_url": postgres_url})
    with Registry(postgres_url) as registry:
        run_id = registry.create_run(
            {}, name="pocket", seed=17, recipe_digest="d" * 64, recipe_dir=recipe_dir
        )
        outputs = finish(start_count(run_id, settings=settings))
        assert finish(start_count(run_id, settings=settings)) == outputs

        fetched = open_store(settings=settings).fetch(outputs["model"])
        assert (fetched / "weights.txt").read_text().startswith("5 ")
        assert registry.artifact(outputs["model"]).uri.startswith(s3_settings.store_url)
        assert registry.stage_runs(run_id)[0].state is State.SUCCEEDED

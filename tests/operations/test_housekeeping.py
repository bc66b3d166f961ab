"""Deleting runs and collecting garbage, on a directory with SQLite and on S3 with Postgres, while
stages run and while collections are killed."""

import io
import json
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from caravan.errors import RegistryError
from caravan.operations.housekeeping import find_garbage
from caravan.operations.served import mark_served, unmark_served
from caravan.registry import Registry, State
from caravan.settings import Settings
from caravan.stages.execute import execute
from caravan.store import open_store
from caravan_command import command_here
from forked import Script

EXECUTE = str(Path(__file__).parents[1] / "execute")
sys.path.append(EXECUTE)  # for sample_stages

from sample_stages.count import CountConfig  # noqa: E402

COLLECT = """
    from datetime import timedelta
    from caravan.operations.housekeeping import find_garbage
    from caravan.registry import open_registry
    from caravan.settings import load_settings
    def collect():
        settings = load_settings()
        with open_registry(settings) as registry:
            found = find_garbage(settings, registry, older_than=timedelta(0), unknown=True)
            return sum(item.remove() for item in found.garbage)
"""


@pytest.fixture(params=["directory", "s3"])
def settings(request, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    if request.param == "directory":
        return Settings(home=tmp_path / "home")
    s3 = request.getfixturevalue("s3_settings")
    return s3.model_copy(update={"registry_url": request.getfixturevalue("postgres_url")})


@pytest.fixture
def registry(settings):
    with Registry(settings.resolved_registry_url) as registry:
        yield registry


@pytest.fixture
def store(settings):
    return open_store(settings=settings)


@pytest.fixture
def finished_run(settings, registry, tmp_path):
    """A run of two stages, the second on the model of the first."""

    def run(steps=1, state=State.SUCCEEDED):
        run_id = registry.create_run(
            {}, name="pocket", seed=17, recipe_digest="d" * 64, recipe_dir=tmp_path
        )
        made = execute("sft", "sample_stages.count", CountConfig(steps=steps), {}, run_id, settings)
        inputs = {"model": made["model"]}
        execute("dpo", "sample_stages.count", CountConfig(steps=steps), inputs, run_id, settings)
        registry.update_run_state(run_id, state)
        return run_id

    return run


@pytest.fixture
def caravan(settings, monkeypatch, capsys):
    return command_here(settings, monkeypatch, capsys)


def outputs(registry, run_id):
    return {digest for stage in registry.stage_runs(run_id) for digest in stage.outputs.values()}


def collect(settings, registry, hours=0.0, unknown=True):
    found = find_garbage(settings, registry, older_than=timedelta(hours=hours), unknown=unknown)
    return {item.name for item in found.garbage if item.remove()}


def everything_referred_to_is_there(registry, store):
    for digest in registry.references():
        store.verify(digest)


def test_of_a_deleted_run_goes_what_no_other_run_has(caravan, registry, store, finished_run):
    first, shared, other = finished_run(), finished_run(), finished_run(steps=2)
    registry.add_note(first, "gone soon", author="ann")
    gone = outputs(registry, other) - outputs(registry, first)

    told = caravan("delete", first, other, "--yes")
    assert f"deleted {first}" in told
    assert [run.id for run in registry.list_runs()] == [shared]
    assert "0 bytes is freed" in caravan("gc")  # all of it is young
    assert all(store.exists(digest) for digest in gone)
    assert "would be freed" in caravan("gc", "--older-than", "0", "--dry-run")
    assert all(store.exists(digest) for digest in gone)
    caravan("gc", "--older-than", "0")

    assert not any(store.exists(digest) for digest in gone)
    assert {item.digest for item in store.stored()} == outputs(registry, shared)
    assert len(registry.artifacts()) == len(outputs(registry, shared))
    everything_referred_to_is_there(registry, store)


def test_what_people_have_rated_outlives_its_run(caravan, registry, store, finished_run):
    run_id = finished_run()
    rated, *_ = made = sorted(outputs(registry, run_id))
    registry.rate_pair(rated, "x/1", "chosen", person="ann")

    told = caravan("delete", run_id, "--yes")
    assert (
        f"1 ratings by people stay, and the pairs with them: caravan data ratings {rated[:12]}"
        in told
    )
    caravan("gc", "--older-than", "0")
    assert [store.exists(digest) for digest in made] == [True, *[False] * (len(made) - 1)]
    assert len(registry.pair_ratings(rated)) == 1

    caravan("gc", "--older-than", "0", "--rated")
    assert not store.exists(rated)
    assert registry.pair_ratings(rated) == []


def test_a_run_whose_model_is_served_stays_until_the_server_is_stopped_or_serves_another(
    caravan, settings, registry, finished_run
):
    first, second = finished_run(), finished_run(steps=2)
    model = registry.stage_runs(first)[0].outputs["model"]
    assert mark_served("judge", model, registry) == first
    assert f"caravan serve --stop judge), or take the tag away: caravan tag {first}" in caravan(
        "delete", second, first, "--yes", code=2
    )
    assert {run.id for run in registry.list_runs()} == {first, second}
    assert not collect(settings, registry)

    other = registry.stage_runs(second)[0].outputs["model"]
    assert mark_served("judge", other, registry, second) == second
    registry.delete_runs([first])
    assert unmark_served("judge", registry)
    registry.delete_runs([second])
    assert mark_served("judge", other, registry) == ""
    assert not unmark_served("judge", registry)


@pytest.fixture
def selecting_run(registry, store, tmp_path):
    """A run whose RLVR gave out three policies, of which `select` took the second."""

    def record(run_id, node, inputs, *names, key="key"):
        stage = "select" if node.startswith("select") else node
        opened = registry.open_stage_run(run_id, node, stage, f"{key} of {node}")
        registry.start_stage_run(opened.id, inputs)
        made = {}
        for name in names:
            content = tmp_path / "made" / name
            content.mkdir(parents=True, exist_ok=True)
            (content / "weights").write_text(name)
            artifact = store.put(content, "model" if name.startswith("step-") else "report")
            made["model" if stage == "select" else name] = (artifact, store.uri(artifact.digest))
        registry.succeed_stage_run(opened.id, made)
        return {name: artifact.digest for name, (artifact, _) in made.items()}

    def run(selects=True):
        run_id = registry.create_run({}, name="pocket", seed=17, recipe_digest="d" * 64)
        made = record(run_id, "rlvr", {}, "step-1", "step-2", "step-3", "rollouts")
        steps = {name: digest for name, digest in made.items() if name != "rollouts"}
        if selects:
            record(run_id, "select", steps, "step-2")
        else:
            registry.open_stage_run(run_id, "select", "select", "another key")
        registry.update_run_state(run_id, State.SUCCEEDED)
        return run_id, made

    run.record = record
    return run


def test_policies_of_each_stage_go_once_their_own_selection_is_done(
    caravan, registry, store, selecting_run
):
    run_id, made = selecting_run()
    steps = selecting_run.record(run_id, "sft", {}, "step-4", "step-5")
    registry.open_stage_run(run_id, "select-sft", "select", "its key")
    caravan("gc", "--candidates", "--older-than", "0")
    assert not store.exists(made["step-1"])
    assert all(map(store.exists, steps.values())), "SFT's are yet to be selected from"
    selecting_run.record(run_id, "select-sft", steps, "step-5")
    caravan("gc", "--candidates", "--older-than", "0")
    assert [name for name, digest in steps.items() if store.exists(digest)] == ["step-5"]
    assert store.exists(made["step-2"])


def test_policies_that_were_not_selected_go_when_asked(caravan, registry, store, selecting_run):
    run_id, made = selecting_run()
    caravan("gc", "--older-than", "0")
    assert all(map(store.exists, made.values()))

    assert "would be freed" in caravan("gc", "--candidates", "--older-than", "0", "--dry-run")
    assert all(map(store.exists, made.values()))
    told = caravan("gc", "--candidates", "--older-than", "0")
    assert told.count("candidate") == 2
    gone = {name for name, digest in made.items() if not store.exists(digest)}
    assert gone == {"step-1", "step-3"}

    refusal = caravan("artifact", "get", f"{run_id}:rlvr/step-3", "--to", "x", code=2)
    assert f"{run_id}:rlvr/step-3 was removed by `caravan gc --candidates`" in refusal
    assert "was removed" in caravan("artifact", "show", made["step-1"][:12], code=2)
    assert made["step-2"] in caravan("artifact", "show", f"{run_id}:select/model")
    assert set(registry.stage_runs(run_id)[0].outputs) == set(made), "it is known what there was"
    assert "0 bytes is freed" in caravan("gc", "--candidates", "--older-than", "0")
    [usage] = json.loads(caravan("du", "--json"))
    assert usage["artifact_bytes"] == len("step-2") + len("rollouts")


def test_policies_that_are_yet_to_be_selected_from_or_used_otherwise_stay(
    caravan, registry, store, selecting_run
):
    first, made = selecting_run()
    selecting_run.record(first, "merge", {"model-0": made["step-1"]}, "merged")
    second, _ = selecting_run(selects=False)
    caravan("gc", "--candidates", "--older-than", "0")
    assert all(map(store.exists, made.values())), "another run is yet to select from them"
    registry.delete_runs([second])
    served = mark_served("judge", made["step-3"], registry, first)
    caravan("gc", "--candidates", "--older-than", "0")
    assert all(map(store.exists, made.values())), f"pods of the server read {served}'s"
    unmark_served("judge", registry)
    caravan("gc", "--candidates", "--older-than", "0")
    assert [name for name in made if not store.exists(made[name])] == ["step-3"]


def test_policies_that_a_run_came_to_select_from_during_a_collection_stay(
    settings, registry, store, selecting_run
):
    _, made = selecting_run()
    found = find_garbage(
        settings, registry, older_than=timedelta(0), unknown=False, candidates=True
    )
    second, _ = selecting_run(selects=False)
    assert [item.remove() for item in found.garbage] == [False, False]
    assert all(map(store.exists, made.values()))
    registry.delete_runs([second])
    assert [item.remove() for item in found.garbage] == [True, True]


def test_policies_that_were_made_anew_after_a_selection_stay_until_the_next_one(
    caravan, registry, store, selecting_run
):
    """Resumed with other data, `rlvr` is done again while `select` still is from before."""
    run_id, before = selecting_run()
    selecting_run.record(run_id, "rlvr", {}, "step-1", "step-20", "step-30", key="other key")
    anew = registry.stage_runs(run_id)[0].outputs
    caravan("gc", "--candidates", "--older-than", "0")
    assert all(map(store.exists, anew.values()))
    selecting_run.record(run_id, "select", anew, "step-20", key="other key")
    caravan("gc", "--candidates", "--older-than", "0")
    assert [name for name in anew if not store.exists(anew[name])] == ["step-1", "step-30"]
    assert not store.exists(before["step-3"])


def test_who_reused_a_deleted_run_has_its_series_and_scores(registry, finished_run):
    first, second, third = finished_run(), finished_run(), finished_run()
    sft = registry.stage_runs(first)[0]
    points = registry.metrics(sft.id)

    registry.delete_runs([first, second])

    heir = registry.stage_runs(third)[0]
    assert heir.reused_from is None
    assert registry.metrics(heir.id) == points
    assert len(registry.scores(third)) == 2
    assert len(registry.score_instances(registry.scores(third)[0].id)) == 2


def test_work_of_a_deleted_run_is_done_again(registry, settings, store, finished_run, tmp_path):
    first = finished_run()
    made = outputs(registry, first)
    registry.delete_runs([first])
    assert collect(settings, registry) == made

    again = finished_run()
    assert outputs(registry, again) == made
    assert len((tmp_path / "calls").read_text().splitlines()) == 4
    everything_referred_to_is_there(registry, store)


def test_a_run_that_runs_is_not_deleted_nor_are_those_beside_it(caravan, registry, finished_run):
    done, running = finished_run(), finished_run(steps=2, state=State.RUNNING)
    assert f"caravan cancel {running}" in caravan("delete", done, running, "--yes", code=2)
    assert len(registry.list_runs()) == 2


def test_deleting_asks_first(caravan, registry, finished_run, monkeypatch):
    run_id = finished_run()
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    assert "Delete, for good?" in caravan("delete", run_id, code=1)
    assert registry.get_run(run_id)


def test_artifacts_of_another_registry_are_left_alone(
    caravan, registry, settings, store, finished_run, tmp_path
):
    ours = finished_run()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "rows.jsonl").write_text("{}\n")
    theirs = store.put(tmp_path / "theirs", "dataset").digest

    assert "never known are left" in caravan("gc", "--older-than", "0")
    assert store.exists(theirs)
    assert collect(settings, registry) == {theirs}
    assert not store.exists(theirs)
    assert registry.references().keys() == outputs(registry, ours)


def test_a_work_directory_stays_while_a_run_can_go_on_with_it(
    settings, registry, finished_run, tmp_path
):
    (tmp_path / "fail-at").write_text("2")
    with pytest.raises(ValueError, match="went"):
        finished_run(steps=3)
    run_id = registry.latest_run().id
    registry.update_run_state(run_id, State.FAILED)
    key = registry.stage_runs(run_id)[0].key
    assert collect(settings, registry) == set()
    assert (settings.work_dir / key / "scratch" / "step").read_text() == "2"

    registry.delete_runs([run_id])
    assert collect(settings, registry) == {key}
    assert list(settings.work_dir.iterdir()) == []


def test_copies_of_checkpoints_stay_while_a_run_can_go_on_with_them(
    s3_settings, registry, tmp_path
):
    from caravan.store.checkpoints import S3Checkpoints

    settings = s3_settings.model_copy(update={"registry_url": registry.url})
    copy = tmp_path / "step-00000002"
    copy.mkdir()
    (copy / "state.json").write_text("{}")
    for key in ("a" * 64, "b" * 64):
        S3Checkpoints(settings, key).upload(copy)
    run_id = registry.create_run({}, name="pocket", seed=17, recipe_digest="d" * 64)
    registry.open_stage_run(run_id, "sft", "sft", "a" * 64)
    with Registry(settings.resolved_registry_url) as opened:
        assert collect(settings, opened) == {"b" * 64}


def test_runs_go_on_while_garbage_is_collected(settings, registry, store, tmp_path):
    """Two processes run the same few stages again and again and delete them; a third collects
    whatever it finds, at once."""
    worker = f"""
        import sys
        sys.path.insert(0, {EXECUTE!r})
        from sample_stages.count import CountConfig
        from caravan.registry import State, open_registry
        from caravan.settings import load_settings
        from caravan.stages.execute import execute
        settings = load_settings()
        with open_registry(settings) as registry:
            for i in range(12):
                run = registry.create_run({{}}, name="pocket", seed=1, recipe_digest="d" * 64,
                                          recipe_dir={str(tmp_path)!r})
                model = {{}}
                for node in ("sft", "dpo"):
                    config = CountConfig(steps=1 + i % 2)
                    made = execute(node, "sample_stages.count", config, model, run, settings)
                    model = {{"model": made["model"]}}
                registry.update_run_state(run, State.SUCCEEDED)
                if i < 11:
                    registry.delete_runs([run])
    """
    environment = os.environ | settings.environment()
    workers = [Script(worker, env=environment) for _ in range(2)]
    collected = 0
    while any(worker.poll() is None for worker in workers):
        collected += len(collect(settings, registry))
    assert [worker.wait() for worker in workers] == [0, 0], [w.stderr for w in workers]

    assert collected > 4  # it was in their way
    assert len(registry.list_runs()) == 2
    everything_referred_to_is_there(registry, store)
    collect(settings, registry)
    assert {item.digest for item in store.stored()} == set(registry.references())


@pytest.mark.parametrize("moment", ["before the first", "in the middle of one", "after one"])
def test_a_collection_that_was_killed_is_finished_by_the_next(
    moment, settings, registry, store, finished_run
):
    kept, deleted = finished_run(), finished_run(steps=2)
    gone = outputs(registry, deleted) - outputs(registry, kept)
    registry.delete_runs([deleted])
    die = "os.kill(os.getpid(), 9)"
    killing = {
        "before the first": f"R.collect = lambda *_, **__: {die}",
        "in the middle of one": f"""
    import minio, caravan.store.directory as d
    real, calls = minio.Minio.remove_object, []
    def remove(*a):
        real(*a)
        {die}
    minio.Minio.remove_object = remove
    d._remove = lambda *_: {die}""",
        "after one": f"""
    real = R.collect
    def one(*a, **k):
        real(*a, **k)
        {die}
    R.collect = one""",
    }[moment]
    script = f"""
    import os
    from caravan.registry import Registry as R
    {killing}
    {COLLECT}
    collect()
    """
    killed = Script(script, env=os.environ | settings.environment())
    assert killed.wait() == -signal.SIGKILL, killed.stderr
    everything_referred_to_is_there(registry, store)

    collect(settings, registry)
    assert not any(store.exists(digest) for digest in gone)
    assert {item.digest for item in store.stored()} == outputs(registry, kept)
    everything_referred_to_is_there(registry, store)
    if hasattr(store, "root"):
        assert list((store.root / "tmp").iterdir()) == []


def test_du_tells_what_runs_share(caravan, finished_run):
    finished_run(), finished_run(steps=2)
    assert "of artifacts in all, of which 0 bytes are no run's" in caravan("du")


def test_a_run_that_is_not_there_is_refused(caravan, registry):
    assert "no run 'x'" in caravan("delete", "x", "--yes", code=2)
    with pytest.raises(RegistryError, match="no run"):
        registry.delete_runs(["x"])

"""What stands around a stage, in one process."""

import hashlib
import math
import os
import subprocess

import pytest
from safetensors import SafetensorError
from sample_stages import count as count_stage
from sample_stages.count import CountConfig
from sample_stages.odd import OddConfig

from caravan.errors import CaravanError, DataError, RegistryError, StageError, StoreError
from caravan.recipe import Resources
from caravan.registry import State
from caravan.settings import Settings
from caravan.stages.candidates import Selection, candidates
from caravan.stages.execute import execute
from caravan.stages.key import stage_key, stage_seed
from caravan.store import open_store


def test_a_stage_is_run_published_and_recorded(count, registry, settings, new_run, recipe_dir):
    run_id = new_run()

    outputs = count(run_id=run_id, steps=3)

    store = open_store(settings=settings)
    seed = stage_seed(17, "sft")
    assert (store.fetch(outputs["model"]) / "weights.txt").read_text() == f"3 {seed} []\n"
    [stage] = registry.stage_runs(run_id)
    assert (stage.node, stage.state, stage.attempt) == ("sft", State.SUCCEEDED, 1)
    assert (stage.progress_done, stage.progress_total) == (3, 3)
    assert stage.outputs == outputs
    assert Resources.model_validate(stage.resources) == Resources(cpus=1)
    assert stage.metrics["last"] == 3.0
    assert set(stage.metrics) == {"last", "perf/cpu_seconds", "perf/peak_memory_gib"}
    assert [(m.step, m.value) for m in registry.metrics(stage.id)] == [(1, 1.5), (2, 3), (3, 4.5)]
    [score] = registry.scores(run_id)
    assert (score.node, score.value) == ("sft", 0.5)
    assert len(registry.score_instances(score.id)) == 2
    assert registry.artifact(outputs["card"]).kind == "report"
    assert registry.artifact(outputs["card"]).uri == store.uri(outputs["card"])
    assert list(settings.work_dir.iterdir()) == []


def test_inputs_are_given_verified_and_become_lineage(count, registry, settings, new_run):
    run_id = new_run()
    first = count("base", run_id)
    second = count("sft", run_id, inputs={"model": first["model"]})

    assert "['model']" in (
        open_store(settings=settings).fetch(second["model"]) / "weights.txt"
    ).read_text()  # fmt: skip
    made_from = registry.lineage(second["model"], "in")
    assert {(e.node, e.direction, e.name) for e in made_from} == {
        ("sft", "out", "model"), ("sft", "out", "card"), ("sft", "in", "model"),
        ("base", "out", "model"), ("base", "out", "card"),
    }  # fmt: skip


def test_a_damaged_input_is_named(count, registry, settings, new_run):
    run_id = new_run()
    digest = count("base", run_id)["model"]
    path = open_store(settings=settings).fetch(digest) / "weights.txt"
    path.chmod(0o644)
    path.write_text("damaged")

    with pytest.raises(StoreError, match=r"weights\.txt is corrupted; .* and resume"):
        count("sft", run_id, inputs={"model": digest})
    assert registry.stage_runs(run_id)[1].state is State.FAILED


def test_what_a_stage_warns_of_is_kept_with_it_and_with_who_reuses_it(
    count, registry, new_run, recipe_dir
):
    first, second = new_run(), new_run()
    (recipe_dir / "warn-at").write_text("2")
    count(run_id=first)
    count(run_id=second)

    for run_id in (first, second):
        [stage] = registry.stage_runs(run_id)
        assert stage.warned == "warning: step 2 looks odd"


def test_a_stage_that_cannot_go_on_says_why(count, registry, new_run, recipe_dir):
    run_id, data = new_run(), recipe_dir / "data.txt"
    for content in ("one", "two"):
        data.write_text(content)
        count(run_id=run_id, files=("data.txt",))
    [stage] = registry.stage_runs(run_id)
    assert "made anew: a file it reads, or its code, has changed" in stage.warned

    digests = [count("base", run_id, steps=steps)["model"] for steps in (1, 2)]
    for digest in digests:
        count("dpo", run_id, inputs={"model": digest})
    warned = {stage.node: stage.warned for stage in registry.stage_runs(run_id)}
    assert "made anew: its input model has changed since this stage last ran" in warned["dpo"]


# --- reuse --------------------------------------------------------------------------------------


def test_finished_work_is_not_repeated_in_the_run_nor_in_another(count, registry, new_run, calls):
    first, second = new_run(), new_run()
    outputs = count(run_id=first)
    before = registry.stage_runs(first)

    assert count(run_id=first) == outputs
    assert count(run_id=second) == outputs

    assert calls() == 1
    assert registry.stage_runs(first) == before
    [reused] = registry.stage_runs(second)
    assert (reused.state, reused.reused_from) == (State.SUCCEEDED, before[0].id)
    assert reused.outputs == outputs
    assert [s.value for s in registry.scores(second)] == [0.5]


def test_work_whose_artifact_is_gone_is_done_again(count, settings, new_run, calls, registry):
    first, second = new_run(), new_run()
    outputs = count(run_id=first)
    count(run_id=second)
    open_store(settings=settings).delete(outputs["card"])

    assert count(run_id=first) == outputs
    assert calls() == 2
    assert open_store(settings=settings).exists(outputs["card"])
    assert registry.stage_runs(first)[0].attempt == 2


def test_what_the_key_depends_on(recipe_dir):
    (recipe_dir / "rows.jsonl").write_text("1")
    config = CountConfig(files=("rows.jsonl",))

    def key(config=config, inputs={"model": "a" * 64}, seed=1):  # noqa: B006
        return stage_key(count_stage, config, inputs, seed, recipe_dir=recipe_dir)

    same = key()
    assert key(config.derive(resources=Resources(cpus=1, memory_gib=99, gpus=8, nodes=4))) == same
    assert key(CountConfig(files=("rows.jsonl",), steps=5)) == same
    others = [
        key(config.derive(resources=Resources(cpus=2))),
        key(config.derive(steps=6)),
        key(inputs={"model": "b" * 64}),
        key(inputs={"policy": "a" * 64}),
        key(seed=2),
    ]
    (recipe_dir / "rows.jsonl").write_text("2")
    others.append(key())
    assert len({same, *others}) == 7
    (recipe_dir / "rows.jsonl").unlink()
    with pytest.raises(StageError, match=r"rows\.jsonl: No such file.*correct the path"):
        key()


def test_the_version_takes_part_in_the_key(monkeypatch):
    before = stage_key(count_stage, CountConfig(), {}, 1)
    monkeypatch.setattr(count_stage, "VERSION", 2)
    assert stage_key(count_stage, CountConfig(), {}, 1) != before


def test_seeds_differ_by_node_and_recipe_and_stay():
    expected = int.from_bytes(hashlib.sha256(b"17/sft").digest()[:4], "big") >> 1
    assert stage_seed(17, "sft") == expected
    assert len({stage_seed(17, "sft"), stage_seed(17, "dpo"), stage_seed(18, "sft")}) == 3


def test_another_recipe_seed_is_other_work(count, new_run, calls):
    assert count(run_id=new_run(1)) != count(run_id=new_run(2))
    assert calls() == 2


def test_the_number_of_threads_is_fixed_before_the_stage_is_imported(count, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    count()
    assert os.environ["OMP_NUM_THREADS"] == "1"


# --- failures -----------------------------------------------------------------------------------


def test_a_failure_keeps_its_traceback_and_checkpoint_and_is_resumed_from_there(
    count, registry, settings, new_run, recipe_dir, calls
):
    run_id = new_run()
    (recipe_dir / "fail-at").write_text("3")
    with pytest.raises(ValueError, match="step 3 <b>went</b> wrong"):
        count(run_id=run_id)
    [failed] = registry.stage_runs(run_id)
    (recipe_dir / "fail-at").unlink()
    resumed = count(run_id=run_id)

    assert failed.state is State.FAILED
    assert failed.error.startswith("ValueError: step 3 <b>went</b> wrong\n\nTraceback")
    assert "sample_stages/count.py" in failed.error
    [stage] = registry.stage_runs(run_id)
    assert (stage.state, stage.attempt, stage.error) == (State.SUCCEEDED, 2, None)
    assert [m.step for m in registry.metrics(stage.id)] == [1, 2, 3, 4, 5]
    assert calls() == 2
    assert count(run_id=new_run(), steps=5) == resumed
    assert list(settings.work_dir.iterdir()) == []


def test_metrics_of_an_unfinished_attempt_are_delivered_to_the_run_that_finishes_it(
    count, registry, new_run, recipe_dir
):
    (recipe_dir / "fail-at").write_text("3")
    with pytest.raises(ValueError, match="step 3"):
        count(run_id=new_run())
    (recipe_dir / "fail-at").unlink()
    other = new_run()
    count(run_id=other)

    [stage] = registry.stage_runs(other)
    assert [m.step for m in registry.metrics(stage.id)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("how", "error", "message"),
    [
        ("empty output", StageError, "wrote nothing into its output 'model'"),
        ("bad name", StageError, "output name '../model'"),
        ("twice", StageError, "already opened"),
        ("link", StoreError, "is a symbolic link"),
        ("bad row", DataError, "row 3: field 'messages' is missing"),
        ("full disk", StageError, "No space left on device while working in .*CARAVAN_HOME"),
        ("full disk of safetensors", StageError, "No space left on device while .*CARAVAN_HOME"),
    ],
)
def test_a_stage_that_breaks_its_promise(how, error, message, registry, settings, new_run):
    run_id = new_run()
    with pytest.raises(error, match=message) as caught:
        execute("odd", "sample_stages.odd", OddConfig(how=how), {}, run_id, settings)

    assert isinstance(caught.value, CaravanError)
    [stage] = registry.stage_runs(run_id)
    assert stage.state is State.FAILED
    assert stage.error.startswith(str(caught.value))
    assert registry.artifacts() == []


def test_an_error_of_safetensors_that_is_no_full_disk_stays_what_it_is(registry, settings, new_run):
    how = "other trouble of safetensors"
    with pytest.raises(SafetensorError, match="Permission denied"):
        execute("odd", "sample_stages.odd", OddConfig(how=how), {}, new_run(), settings)


def test_a_stage_that_exits_has_failed(count, registry, new_run, recipe_dir):
    run_id = new_run()
    (recipe_dir / "exit-at").write_text("2")
    with pytest.raises(SystemExit):
        count(run_id=run_id)
    assert registry.stage_runs(run_id)[0].state is State.FAILED


def test_a_stage_may_have_no_output_and_odd_numbers(registry, settings, new_run):
    run_id = new_run()
    config = OddConfig(how="nothing")
    assert execute("odd", "sample_stages.odd", config, {}, run_id, settings) == {}
    assert math.isnan(registry.stage_runs(run_id)[0].metrics["n"])


def test_a_stage_or_run_that_is_not_there(settings, new_run):
    with pytest.raises(StageError, match="there is no stage 'nonsense'"):
        execute("x", "nonsense", CountConfig(), {}, new_run(), settings)
    with pytest.raises(RegistryError, match="no run 'nowhere'"):
        execute("x", "sample_stages.count", CountConfig(), {}, "nowhere", settings)


def test_a_stage_that_cannot_start_is_recorded_as_failed(
    count, registry, settings, new_run, recipe_dir
):
    run_id = new_run()
    with pytest.raises(StageError, match="correct the path"):
        count(run_id=run_id, files=["rows.jsonl"])
    [failed] = registry.stage_runs(run_id)
    assert (failed.state, failed.error.splitlines()[0][-30:]) == (
        State.FAILED, "correct the path in the recipe",
    )  # fmt: skip

    (recipe_dir / "rows.jsonl").write_text("{}")
    count(run_id=run_id, files=["rows.jsonl"])
    (recipe_dir / "rows.jsonl").unlink()
    with pytest.raises(StageError, match="correct the path"):
        count(run_id=run_id, files=["rows.jsonl"])
    assert registry.stage_runs(run_id)[0].state is State.SUCCEEDED


def test_a_really_full_disk(registry, new_run, tmp_path):
    home = tmp_path / "small"
    home.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(home)])
    if made.returncode:
        pytest.skip("may not mount here")
    try:
        settings = Settings(
            home=home, registry_url=f"sqlite:///{tmp_path}/home/registry.db", patience_seconds=1
        )
        with pytest.raises(StageError, match=r"No space left .* free some space .* resume the run"):
            execute("odd", "sample_stages.odd", OddConfig(how="large"), {}, new_run(), settings)
        assert not (home / "store").exists()
    finally:
        subprocess.run(["umount", "-l", str(home)], check=True)


def test_a_failed_publication_does_not_run_the_stage_again(
    count, registry, settings, new_run, calls, tmp_path
):
    run_id = new_run()
    (tmp_path / "not-a-directory").write_text("")
    broken = Settings(
        home=settings.home, store_url=str(tmp_path / "not-a-directory"), patience_seconds=0.1
    )
    with pytest.raises(StoreError, match="Not a directory"):
        count(run_id=run_id, settings=broken)
    assert registry.stage_runs(run_id)[0].state is State.FAILED

    count(run_id=run_id)

    assert calls() == 1
    assert registry.stage_runs(run_id)[0].state is State.SUCCEEDED
    assert [s.value for s in registry.scores(run_id)] == [0.5]


def test_what_was_selected_from_may_go_and_its_stage_is_found_done(
    registry, settings, new_run, recipe_dir, calls
):
    store = open_store(settings=settings)

    def selection(steps):
        config = CountConfig(steps=steps)
        return Selection("sample_stages.count", config, stage_seed(17, "select"), recipe_dir)

    def steps(selection):
        config = CountConfig(steps=2)
        return execute("rlvr", "sample_stages.steps", config, {}, new_run(), settings,
                       selection=selection)  # fmt: skip

    made = steps(selection(1))
    store.delete(made["step-1"])
    assert steps(selection(1)) == made
    assert calls() == 2, "nothing has selected from them yet"

    execute("select", "sample_stages.count", CountConfig(steps=1), candidates(made), new_run(),
            settings)  # fmt: skip
    store.delete(made["step-1"])
    before = calls()
    assert steps(selection(1)) == made
    assert calls() == before
    assert steps(selection(3)) == made
    assert calls() == before + 1, "another selection needs them"
    store.delete(made["rollouts"])
    assert steps(selection(1)) == made
    assert calls() == before + 2, "nobody said that anything else may go"

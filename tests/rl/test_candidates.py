"""The policies along the way of RLVR that are yet to be selected from."""

import shutil

import pytest
from transformers import AutoModelForCausalLM

from caravan.errors import CaravanError, StoreUnavailableError
from caravan.stages import rlvr
from caravan.store.checkpoints import S3Checkpoints

from .small_run import GRPO, PPO, config, digest


def models_of(context):
    """The files of each model that a stage gave out."""
    found = {}
    for name, content in digest(context).items():
        _, output, file = name.split("/", 2)
        if output != "rollouts":
            found.setdefault(output, {})[file] = content
    return found


@pytest.mark.parametrize("algorithm", [GRPO, PPO])
def test_policies_are_kept_along_the_way_and_the_last_is_that_of_a_run_without(
    inputs, context, algorithm
):
    settings = config(algorithm, max_steps=5)
    kept, last, shorter = context("kept"), context("last"), context("shorter")
    rlvr.run(settings.derive(keep_every=2), inputs, kept)
    rlvr.run(settings, inputs, last)
    rlvr.run(settings.derive(max_steps=2), inputs, shorter)
    found = models_of(kept)
    assert set(found) == {"step-2", "step-4", "step-5"}
    assert found["step-5"] == models_of(last)["model"]
    assert found["step-2"] == models_of(shorter)["model"]
    assert found["step-2"] != found["step-4"]
    AutoModelForCausalLM.from_pretrained(kept.root / "out" / "step-4")


@pytest.mark.parametrize("stop_after", [1, 3, 4])
def test_a_stopped_run_keeps_the_same_policies(inputs, context, stop_after):
    settings = config(max_steps=5, save_steps=3, keep_every=2)
    whole, stopped = context("whole"), context("stopped", stop_after=stop_after)
    rlvr.run(settings, inputs, whole)
    with pytest.raises(KeyboardInterrupt):
        rlvr.run(settings, inputs, stopped)
    stopped.stop_after = None
    rlvr.run(settings, inputs, stopped)
    assert digest(stopped) == digest(whole)


def test_a_candidate_that_is_gone_is_told_before_the_next_step(inputs, context):
    stopped = context("stopped", stop_after=3)
    settings = config(max_steps=5, save_steps=3, keep_every=2)
    with pytest.raises(KeyboardInterrupt):
        rlvr.run(settings, inputs, stopped)
    shutil.rmtree(stopped.workdir / "candidates" / "step-2")
    with pytest.raises(CaravanError, match=r"candidates/step-2 is missing, .* to start anew"):
        rlvr.run(settings, inputs, stopped)
    assert max(stopped.logged) == 3


def test_another_machine_has_the_candidates_from_the_store(inputs, context, s3_settings):
    settings = config(max_steps=5, save_steps=2, keep_every=2)
    whole = context("whole")
    rlvr.run(settings, inputs, whole)
    copies = S3Checkpoints(s3_settings, "k" * 64)
    one, two = context("one", stop_after=3), context("two")
    one.remote_checkpoints = two.remote_checkpoints = copies
    with pytest.raises(KeyboardInterrupt):
        rlvr.run(settings, inputs, one)
    rlvr.run(settings, inputs, two)
    assert min(two.logged) == 3
    assert digest(two) == digest(whole)
    copies.keep([])
    assert S3Checkpoints.stored(copies._store) == {}


def test_a_candidate_that_the_store_did_not_take_comes_before_the_next_checkpoint(
    inputs, context, s3_settings, monkeypatch
):
    settings = config(max_steps=6, save_steps=2, keep_every=2)
    copies = S3Checkpoints(s3_settings, "k" * 64)
    one, two = context("one", stop_after=5), context("two")
    one.remote_checkpoints = two.remote_checkpoints = copies
    upload, refused = copies.upload, []

    def away_once(directory, parent=""):
        if parent and not refused:
            refused.append(directory.name)
            raise StoreUnavailableError("away")
        if not parent and directory.name == "step-00000002":
            pytest.fail("a checkpoint is in the store without the candidate that it counts on")
        upload(directory, parent)

    monkeypatch.setattr(copies, "upload", away_once)
    with pytest.raises(KeyboardInterrupt):
        rlvr.run(settings, inputs, one)
    assert refused == ["step-2"]
    rlvr.run(settings, inputs, two)
    assert min(two.logged) == 5
    assert set(models_of(two)) == {"step-2", "step-4", "step-6"}

import json

import pytest
import torch

from caravan.data.io import read_rows
from caravan.data.records import Message
from caravan.errors import CaravanError
from caravan.stages.so_far import so_far, write_so_far
from caravan.store.checkpoints import S3Checkpoints
from caravan.training.checkpoint import STATE, TENSORS, Checkpoints, Copies, TrainingState
from caravan.training.optim import Schedule, Updater


def make(model):
    updater = Updater(model, Schedule(1e-2, 10))
    return updater, TrainingState({"policy": model}, {"policy": updater.optimizer})


def step(model, updater, number):
    """One step that depends on weights and moments."""
    ids = torch.randint(2, 320, (2, 8), generator=torch.Generator().manual_seed(number))
    updater.backward(model(ids).logits.float().logsumexp(-1).mean())
    return updater.step(number)


def test_everything_the_next_step_depends_on_comes_back(policy, tmp_path):
    model = policy.model
    updater, state = make(model)
    checkpoints = Checkpoints(tmp_path, fingerprint="x")
    for i in range(3):
        step(model, updater, i)
    checkpoints.save(3, state, {"num_tokens": 48})
    undisturbed = [step(model, updater, i) for i in range(3, 6)]
    weights = {k: v.clone() for k, v in model.state_dict().items()}

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    updater, state = make(model)
    resumed = checkpoints.restore(state)

    assert (resumed.step, resumed.extra) == (3, {"num_tokens": 48})
    assert [step(model, updater, i) for i in range(3, 6)] == undisturbed
    assert all(torch.equal(weights[k], v) for k, v in model.state_dict().items())


def test_nothing_is_restored_where_nothing_was_saved(policy, tmp_path):
    _, state = make(policy.model)
    assert Checkpoints(tmp_path, fingerprint="x").restore(state) is None


def test_only_the_newest_are_kept(policy, tmp_path):
    _, state = make(policy.model)
    checkpoints = Checkpoints(tmp_path, fingerprint="x", keep=2)
    for i in (1, 2, 3):
        checkpoints.save(i, state)
    checkpoints.wait()
    names = sorted(path.name for path in checkpoints.directory.iterdir())
    assert names == ["step-00000002", "step-00000003"]


@pytest.mark.parametrize("damage", ["cut", "altered", "no state", "half written"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(policy, tmp_path, damage, caplog):
    _, state = make(policy.model)
    checkpoints = Checkpoints(tmp_path, fingerprint="x")
    checkpoints.save(1, state)
    checkpoints.save(2, state)
    checkpoints.wait()
    newest = checkpoints.directory / "step-00000002"
    tensors = (newest / TENSORS).read_bytes()
    if damage == "cut":
        (newest / TENSORS).write_bytes(tensors[: len(tensors) // 2])
    elif damage == "altered":
        (newest / TENSORS).write_bytes(tensors[:-1] + bytes([tensors[-1] ^ 1]))
    elif damage == "no state":
        (newest / STATE).unlink()
    else:
        newest.rename(newest.with_name(f"writing-{newest.name}"))
    assert checkpoints.restore(state).step == 1
    assert ("is damaged" in caplog.text) == (damage != "half written")


def test_where_the_only_checkpoint_is_damaged_nothing_starts_anew_unasked(policy, tmp_path):
    _, state = make(policy.model)
    with Checkpoints(tmp_path, fingerprint="x") as checkpoints:
        checkpoints.save(1, state)
    tensors = checkpoints.directory / "step-00000001" / TENSORS
    tensors.write_bytes(tensors.read_bytes()[:-100])
    with pytest.raises(CaravanError, match=r"step-00000001 is damaged .* delete .* to start anew"):
        Checkpoints(tmp_path, fingerprint="x").restore(state)


def test_a_checkpoint_of_another_run_is_refused(policy, tmp_path):
    _, state = make(policy.model)
    with Checkpoints(tmp_path, fingerprint="x") as checkpoints:
        checkpoints.save(1, state)
    with pytest.raises(CaravanError, match="another training run"):
        Checkpoints(tmp_path, fingerprint="y").restore(state)


def test_a_checkpoint_holds_no_pickle(policy, tmp_path):
    _, state = make(policy.model)
    with Checkpoints(tmp_path, fingerprint="x") as checkpoints:
        checkpoints.save(1, state)
    directory = checkpoints.directory / "step-00000001"
    assert sorted(path.name for path in directory.iterdir()) == [STATE, TENSORS]
    assert json.loads((directory / STATE).read_text())["step"] == 1


def test_weights_that_change_while_a_checkpoint_is_written_are_not_in_it(policy, tmp_path):
    _, state = make(policy.model)
    before = {k: v.clone() for k, v in policy.model.state_dict().items()}
    with Checkpoints(tmp_path, fingerprint="x") as checkpoints:
        checkpoints.save(1, state)
        with torch.no_grad():
            for parameter in policy.model.parameters():
                parameter.add_(1.0)
    checkpoints.restore(state)
    assert all(torch.equal(before[k], v) for k, v in policy.model.state_dict().items())


@pytest.mark.parametrize("kind", [dict, Copies])
def test_what_is_a_copy_already_is_not_copied_again(kind, tmp_path, monkeypatch):
    """Under ZeRO the leading rank has gathered the whole model, and has no room for it twice."""

    class OneTensor:
        def tensors(self):
            return kind(weight=weight)

    weight, written = torch.ones(3), []
    monkeypatch.setattr(
        Checkpoints, "_write", lambda _, step, tensors, text: written.append(tensors)
    )
    checkpoints = Checkpoints(tmp_path, fingerprint="x")
    checkpoints.save(1, OneTensor())
    checkpoints.wait()
    assert (written[0]["weight"] is weight) == (kind is Copies)


def test_a_checkpoint_that_could_not_be_written_is_an_error_of_the_next(policy, tmp_path):
    _, state = make(policy.model)
    checkpoints = Checkpoints(tmp_path, fingerprint="x")
    checkpoints.directory.write_text("a file where the directory should be")
    checkpoints.save(1, state)
    with pytest.raises(OSError, match="checkpoints"):
        checkpoints.save(2, state)


def test_another_machine_goes_on_from_the_copy_in_the_store(policy, tmp_path, s3_settings):
    _, state = make(policy.model)
    copies = S3Checkpoints(s3_settings, "k" * 64)
    with Checkpoints(tmp_path / "one", fingerprint="x", remote=copies) as checkpoints:
        for i in (1, 2, 3):
            checkpoints.save(i, state, {"i": i})
    weights = {k: v.clone() for k, v in policy.model.state_dict().items()}
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.zero_()

    elsewhere = Checkpoints(tmp_path / "two", fingerprint="x", remote=copies)
    assert elsewhere.restore(state).extra == {"i": 3}
    assert all(torch.equal(weights[k], v) for k, v in policy.model.state_dict().items())
    assert {path.name for path in elsewhere.directory.iterdir()} == {"step-00000003"}
    copies.keep([])
    assert Checkpoints(tmp_path / "three", fingerprint="x", remote=copies).restore(state) is None


def test_what_a_stage_shows_so_far_is_read_on_another_machine(tmp_path, s3_settings):
    copies = S3Checkpoints(s3_settings, "k" * 64)
    assert so_far(s3_settings, copies.key) is None
    for number in (1, 2):
        write_so_far(tmp_path, [Message(role="user", content=str(number))], copies)
        copies.keep(["step-00000001"])
    shown = so_far(s3_settings, copies.key)
    assert [message.content for message in read_rows(shown, Message)] == ["2"]
    copies.keep([])
    assert so_far(s3_settings, copies.key) is None

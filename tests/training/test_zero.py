"""How DeepSpeed is given a model: what no process on a CPU can tell from its losses."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from caravan.recipe import SFTConfig
from caravan.training.optim import Schedule
from caravan.training.parallel import zero


@pytest.mark.parametrize(
    ("stage", "expected"), [(2, ["initialize on cpu"]), (3, ["share out", "initialize on meta"])]
)
def test_under_stage_3_weights_are_shared_out_before_the_model_is_taken_to_the_device(
    stage, expected, policy, monkeypatch
):
    """`initialize` takes a model that was not shared out to the device whole. What is shared out
    has its buffers left behind."""
    calls = []

    def share_out(*, module, config_dict_or_path):
        assert config_dict_or_path["zero_optimization"]["stage"] == 3
        assert module is policy.model
        calls.append("share out")

    def initialize(*, model, optimizer, config):
        (device,) = {buffer.device.type for buffer in model.buffers()}
        calls.append(f"initialize on {device}")
        return (object(),)

    fake = SimpleNamespace(zero=SimpleNamespace(Init=share_out), initialize=initialize)
    monkeypatch.setattr(zero, "_deepspeed", lambda: fake)
    monkeypatch.setattr(zero, "_device", lambda: torch.device("meta"))
    config = SFTConfig(zero_stage=stage)
    updater = zero.ZeroUpdater(policy.model, Schedule(1e-3, 4), config, (0.9, 0.999))
    assert updater.engine is updater.engine
    assert calls == expected

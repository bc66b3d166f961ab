import json

import pytest
import torch
from safetensors.torch import load_file

from caravan.errors import CaravanError, DataError
from caravan.recipe import LoRAConfig, RewardModelConfig, SFTConfig
from caravan.stages import reward_model, sft
from caravan.training.adapters import add_adapters, load_base, plain
from caravan.training.batching import TokenRow
from caravan.training.models import load_policy
from caravan.training.sft import sft_job
from tiny import ONE_CORE, Context, Stopped

CONFIG = SFTConfig(
    learning_rate=1e-2, max_length=64, tokens_per_pass=256, sequences_per_step=4, max_steps=4,
    save_steps=2, bf16=False, resources=ONE_CORE, lora=LoRAConfig(rank=4, alpha=8),
)  # fmt: skip


def rows(count=6):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, 320, (count, 12), generator=generator).tolist()
    return [TokenRow(f"r/{i}", row, [False] * 4 + [True] * 8) for i, row in enumerate(ids)]


def test_only_adapters_are_trained_and_merging_keeps_what_the_model_says(policy, ids):
    model = policy.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    add_adapters(model, CONFIG)
    for _ in sft_job(model, rows(), CONFIG, pad_token_id=0, seed=1).steps(bf16=False):
        pass
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in name for name in trained)
    for name, value in model.state_dict().items():
        if "lora_" not in name:
            assert torch.equal(value, before[name.replace(".base_layer", "")]), name
    model.eval()
    said = model(ids).logits.detach()
    merged = plain(model, CONFIG, policy.model.config._name_or_path)
    assert merged.state_dict().keys() == before.keys()
    torch.testing.assert_close(merged(ids).logits, said, rtol=0, atol=1e-5)
    changed = [name for name, value in merged.state_dict().items() if not value.equal(before[name])]
    assert len(changed) == 14  # seven linear layers in each of two blocks


def test_a_stage_with_adapters_resumes_to_the_same_bytes_and_writes_a_plain_model(inputs, tmp_path):
    config = CONFIG.derive(lora=LoRAConfig(rank=4, dropout=0.1))
    undisturbed, stopped = Context(tmp_path / "a"), Context(tmp_path / "b", stop_at=3)
    sft.run(config, inputs, undisturbed)
    with pytest.raises(Stopped):
        sft.run(config, inputs, stopped)
    checkpoint = next((stopped.workdir / "checkpoints").glob("step-*"))
    kept = load_file(checkpoint / "tensors.safetensors")
    assert all("lora_" in name for name in kept if name.startswith("module/"))
    sft.run(config, inputs, stopped)
    made = [context.directory / "out" / "model" for context in (undisturbed, stopped)]
    weights = [(path / "model.safetensors").read_bytes() for path in made]
    assert weights[0] == weights[1]
    expected = load_policy(inputs["model"]).model.state_dict().keys()
    assert load_policy(made[0]).model.state_dict().keys() == expected
    assert "peft" not in json.dumps(json.loads((made[0] / "config.json").read_text()))


def test_a_reward_model_trains_its_head_in_full(inputs, tmp_path):
    config = RewardModelConfig(
        learning_rate=1e-2, max_length=64, pairs_per_step=6, max_steps=2, bf16=False,
        resources=ONE_CORE, lora=LoRAConfig(rank=2),
    )  # fmt: skip
    context = Context(tmp_path)
    reward_model.run(config, inputs, context)
    kept = load_file(context.workdir / "checkpoints" / "step-00000002" / "tensors.safetensors")
    assert "module/policy/score.weight" in kept


def test_a_layer_that_is_not_there_is_named_with_those_that_are(policy):
    with pytest.raises(DataError, match=r"\['c_attn'\] names no linear layer.*q_proj"):
        add_adapters(policy.model, CONFIG.derive(lora=LoRAConfig(target_modules=("c_attn",))))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_four_bits_without_a_gpu_are_refused(model_dir):
    with pytest.raises(CaravanError, match="needs a CUDA GPU"):
        load_base(model_dir, CONFIG.derive(quantization="nf4"))

import json

import pytest
import torch
from safetensors.torch import load_file

from caravan.errors import CaravanError, DataError
from caravan.recipe import LoRAConfig, RewardModelConfig
from caravan.stages import reward_model, sft
from caravan.stages.configs import SFTStageConfig
from caravan.training import adapters, precision
from caravan.training.adapters import add_adapters, load_base, plain
from caravan.training.batching import TokenRow
from caravan.training.models import load_policy, load_reward_model
from caravan.training.sft import sft_job
from tiny import ONE_CORE, Context, Stopped

CONFIG = SFTStageConfig(
    learning_rate=1e-2, max_length=64, tokens_per_pass=256, sequences_per_step=4, max_steps=4,
    save_steps=2, bf16=False, resources=ONE_CORE, lora=LoRAConfig(rank=4, alpha=8),
)  # fmt: skip


CPU = torch.device("cpu")


def rows(count=6):
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, 320, (count, 12), generator=generator).tolist()
    return [TokenRow(f"r/{i}", row, [False] * 4 + [True] * 8) for i, row in enumerate(ids)]


def test_only_adapters_are_trained_and_merging_keeps_what_the_model_says(policy, ids, model_dir):
    model = policy.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    add_adapters(model, CONFIG, CPU)
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
    merged = plain(model, CONFIG, model_dir)
    assert merged.state_dict().keys() == before.keys()
    torch.testing.assert_close(merged(ids).logits, said, rtol=0, atol=1e-5)
    changed = [name for name, value in merged.state_dict().items() if not value.equal(before[name])]
    assert len(changed) == 14  # seven linear layers in each of two blocks


@pytest.fixture
def bf16_everywhere(monkeypatch):
    """As if this CPU had bfloat16, which it computes either way."""
    for module in (precision, adapters):
        monkeypatch.setattr(module, "computes_in_bf16", lambda device, bf16: bf16)


def test_frozen_matrices_take_half_and_passes_give_the_same_numbers(
    policy, ids, model_dir, bf16_everywhere
):
    base = {name: value.clone() for name, value in policy.model.state_dict().items()}
    said, held = [], []
    for half in (False, True):
        config = CONFIG.derive(bf16=half)
        torch.manual_seed(0)
        model = load_base(model_dir, config, CPU).model
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zero at first: the adapters would say nothing
                torch.nn.init.normal_(parameter)
        with precision.autocast("cpu", bf16=True):
            said.append(model(ids).logits)
        held.append({name: p.dtype for name, p in model.named_parameters()})
        merged = plain(model, config, model_dir).state_dict()
        for layer in adapters._adapted(model):
            expected = base[f"{layer.name}.weight"] + layer.module.get_delta_weight("default")
            assert torch.equal(merged[f"{layer.name}.weight"], expected)
    assert torch.equal(said[0], said[1])
    assert set(held[0].values()) == {torch.float32}
    halved = {name for name, dtype in held[1].items() if dtype == torch.bfloat16}
    assert halved == {name for name in held[1] if "base_layer" in name}


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
        learning_rate=1e-2, max_length=64, pairs_per_step=6, max_steps=2, resources=ONE_CORE,
        lora=LoRAConfig(rank=2),
    )  # fmt: skip
    context = Context(tmp_path)
    reward_model.run(config, inputs, context)
    kept = load_file(context.workdir / "checkpoints" / "step-00000002" / "tensors.safetensors")
    written = load_reward_model(context.directory / "out" / "model").model.state_dict()
    assert torch.equal(written["score.weight"], kept["module/policy/score.weight"])
    base = load_policy(inputs["model"]).model.state_dict()
    changed = {name for name, value in base.items() if not value.equal(written.get(name, value))}
    assert len(changed) == 14


def test_a_layer_that_is_not_there_is_named_with_those_that_are(policy):
    lora = LoRAConfig(target_modules=("q_proj", "c_attn", "lm_head"))
    with pytest.raises(DataError, match=r"target_modules: no .* c_attn or lm_head; it has .*q_pro"):
        add_adapters(policy.model, CONFIG.derive(lora=lora), CPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_four_bits_without_a_gpu_are_refused(model_dir):
    with pytest.raises(CaravanError, match="needs a CUDA GPU"):
        load_base(model_dir, CONFIG.derive(quantization="nf4"), CPU)

"""What only a GPU can show: its kernels, and the memory that training takes there."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from caravan.errors import CaravanError
from caravan.inference.sampler import generate_tokens
from caravan.planning.devices import GIB
from caravan.planning.memory import TrainingSetup
from caravan.planning.shapes import ModelShape
from caravan.recipe import LoRAConfig, Resources
from caravan.stages import dpo, sft
from caravan.stages.configs import DPOStageConfig, SFTStageConfig
from caravan.training import output_head
from caravan.training.attention import VARLEN_OPTIONS
from caravan.training.batching import TokenRow, collate
from caravan.training.kernels import fused, logits_gradient, pick_logits, use_fused_kernels
from caravan.training.logprobs import token_logprobs
from caravan.training.models import load_policy, place, prepare_torch
from caravan.training.optim import Schedule, Updater
from tiny import Context, Stopped

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here"),
]
GPU = torch.device("cuda")
COMMON = {
    "learning_rate": 1e-3, "max_length": 64, "tokens_per_pass": 256, "max_steps": 6,
    "save_steps": 2, "resources": Resources(cpus=1, gpus=1),
}  # fmt: skip
SFT = SFTStageConfig(sequences_per_step=4, **COMMON)
DPO = DPOStageConfig(pairs_per_step=4, **COMMON)


def llama(heads: int = 4, key_heads: int = 2, **changes: int) -> LlamaForCausalLM:
    torch.manual_seed(0)
    shape = {
        "vocab_size": 1024, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3,
        "max_position_embeddings": 2048,
    } | changes  # fmt: skip
    config = LlamaConfig(
        **shape, num_attention_heads=heads, num_key_value_heads=key_heads, use_cache=False,
        tie_word_embeddings=True, initializer_range=0.05, attn_implementation="sdpa",
    )  # fmt: skip
    return LlamaForCausalLM(config).train()


def rows(*sizes: int, shared: int = 0) -> list[TokenRow]:
    generator = torch.Generator().manual_seed(4)
    begin = torch.randint(2, 1024, (shared,), generator=generator).tolist()
    made = []
    for i, size in enumerate(sizes):
        ids = begin + torch.randint(2, 1024, (size - shared,), generator=generator).tolist()
        made.append(TokenRow(str(i), ids, [False] * (size // 3) + [True] * (size - size // 3)))
    return made


def computed(model, batch, *, bf16: bool, packed: bool = True):
    """Log-probabilities, and the gradient of their weighed sum."""
    model.zero_grad()
    batch = batch.to(model.device)
    with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
        layout = batch.layout if packed else None
        values = token_logprobs(model, batch.input_ids, batch.loss_mask, layout)
    (values * torch.linspace(-1, 1, len(values), device=values.device)).sum().backward()
    grads = torch.cat([p.grad.flatten().float().cpu() for p in model.parameters()])
    return values.detach().cpu(), grads


def distance(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found - exact).norm() / exact.norm())


@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("shared", [0, 90], ids=["rows", "pairs"])
def test_the_varlen_kernel_is_as_close_to_float32_as_padded_rows(key_heads, shared):
    """Rows that see one another, or a prefix that is not seen, would be off by far more."""
    assert "window_size" in VARLEN_OPTIONS
    model = llama(key_heads=key_heads)
    prompts = [shared] * 3 if shared else []
    batch = collate(rows(300, 120, 100, 410, 95, 230, shared=shared), 0, prompts)
    exact = computed(model, batch, bf16=False, packed=False)
    model.to(GPU)
    packed = computed(model, batch, bf16=True)
    padded = computed(model, batch, bf16=True, packed=False)
    for found, plain, truth in zip(packed, padded, exact, strict=True):
        assert distance(found, truth) < 1.5 * distance(plain, truth) + 1e-4


def test_liger_kernels_change_no_number_beyond_rounding():
    batch = collate(rows(300, 120, 100), 0)
    exact = computed(llama(), batch, bf16=False)
    plain = computed(llama().to(GPU), batch, bf16=True)
    model = llama()
    assert use_fused_kernels(model, GPU)
    with_kernels = computed(model.to(GPU), batch, bf16=True)
    for found, other, truth in zip(with_kernels, plain, exact, strict=True):
        assert distance(found, truth) < 1.5 * distance(other, truth) + 1e-4


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("tokens", [1, 33, 500])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_fused_kernels_of_the_output_head_compute_what_the_plain_ones_do(
    temperature, tokens, dtype
):
    torch.manual_seed(tokens)
    logits = (8 * torch.randn(tokens, 5003, device=GPU)).to(dtype)
    labels = torch.randint(0, 5003, (tokens,), device=GPU)
    scale = torch.randn(tokens, device=GPU)
    chosen, normaliser = fused(pick_logits)(logits, labels, temperature)
    found = fused(logits_gradient)(logits, labels, normaliser, scale, temperature)

    exact = torch.distributions.Categorical(logits=logits.double() / temperature)
    torch.testing.assert_close(
        (chosen - normaliser).double(), exact.log_prob(labels), atol=2e-5, rtol=2e-5
    )
    onehot = torch.nn.functional.one_hot(labels, 5003)
    gradient = (onehot - exact.probs) * scale[:, None].double()
    assert distance(found.double(), gradient) < (1e-5 if dtype == torch.float32 else 4e-3)


def test_the_output_head_on_a_gpu_gives_the_gradients_of_the_whole_logits(monkeypatch):
    monkeypatch.setattr(output_head, "LOGITS_PER_CHUNK_ON_GPU", 1024 * 50)  # 50 tokens at a time
    torch.manual_seed(1)
    hidden = torch.randn(333, 64, device=GPU, requires_grad=True)
    weight = torch.randn(1024, 64, device=GPU, requires_grad=True)
    labels = torch.randint(0, 1024, (333,), device=GPU)
    upstream = torch.randn(333, device=GPU)
    found = output_head.linear_logprobs(hidden, weight, labels, temperature=0.9)
    ours = torch.autograd.grad((found * upstream).sum(), (hidden, weight))
    whole = (hidden.double() @ weight.double().T / 0.9).log_softmax(1)
    expected = whole.gather(1, labels[:, None]).squeeze(1)
    theirs = torch.autograd.grad((expected * upstream).sum(), (hidden, weight))
    torch.testing.assert_close(found.double(), expected, atol=1e-3, rtol=1e-4)
    for one, other in zip(ours, theirs, strict=True):
        assert distance(one, other) < 1e-4
    summed = output_head.linear_cross_entropy(hidden, weight, labels)
    ours = torch.autograd.grad(summed / 333, (hidden, weight))
    mean = torch.nn.functional.cross_entropy(hidden.double() @ weight.double().T, labels)
    theirs = torch.autograd.grad(mean, (hidden, weight))
    assert summed.item() / 333 == pytest.approx(mean.item(), rel=1e-5)
    for one, other in zip(ours, theirs, strict=True):
        assert distance(one, other) < 1e-4


@pytest.mark.parametrize(("stage", "config"), [(sft, SFT), (dpo, DPO)], ids=["sft", "dpo"])
def test_a_stage_that_was_stopped_ends_with_the_same_bytes(stage, config, inputs, tmp_path):
    undisturbed, stopped = Context(tmp_path / "a"), Context(tmp_path / "b", stop_at=3)
    stage.run(config, inputs, undisturbed)
    with pytest.raises(Stopped):
        stage.run(config, inputs, stopped)
    stage.run(config, inputs, stopped)
    assert stopped.logged[6]["loss"] == undisturbed.logged[6]["loss"]
    weights = [c.directory / "out" / "model" / "model.safetensors" for c in (undisturbed, stopped)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert undisturbed.logged[6]["perf/peak_gpu_memory_gib"] > 0


def test_the_losses_of_a_stage_are_those_of_a_cpu(inputs, tmp_path):
    on_gpu, on_cpu = Context(tmp_path / "gpu"), Context(tmp_path / "cpu")
    config = SFT.derive(bf16=False)
    program = """
import pickle, sys
import torch
# Liger replaces what is in transformers for the whole process.
torch.cuda.is_available = lambda: False
from caravan.stages import sft
config, inputs, context, logged = pickle.load(sys.stdin.buffer)
sft.run(config, inputs, context)
pickle.dump(context.logged, open(logged, "wb"))
"""
    logged = tmp_path / "logged"
    given = (config.derive(resources=Resources(cpus=1)), inputs, on_cpu, logged)
    tests = str(Path(__file__).parent.parent)
    subprocess.run(
        [sys.executable, "-c", program], input=pickle.dumps(given), check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([tests, *sys.path])},
    )  # fmt: skip
    sft.run(config, inputs, on_gpu)
    for step, values in pickle.loads(logged.read_bytes()).items():
        assert on_gpu.logged[step]["loss"] == pytest.approx(values["loss"], rel=1e-3), step


def test_four_bit_weights_are_trained_with_adapters(inputs, tmp_path):
    pytest.importorskip("bitsandbytes")
    context = Context(tmp_path)
    config = SFT.derive(
        learning_rate=1e-2, max_steps=30, lora=LoRAConfig(rank=8, alpha=16), quantization="nf4"
    )
    sft.run(config, inputs, context)
    assert context.logged[30]["loss"] < 0.95 * context.logged[1]["loss"]
    load_policy(context.directory / "out" / "model")


@dataclass
class Crowded(Context):
    """When the model is on the GPU, nothing more is to be had of its memory."""

    def progress(self, done: int, total: int) -> None:
        torch.cuda.empty_cache()
        whole = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved() / whole)


def test_a_pass_that_does_not_fit_says_what_to_do(inputs, tmp_path):
    try:
        with pytest.raises(CaravanError, match="give tokens_per_pass a lower number"):
            sft.run(SFT.derive(tokens_per_pass=100_000), inputs, Crowded(tmp_path))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_peaks_near_the_plan(checkpointing):
    shape = ModelShape(1024, 4096, 8, 8, 4, 32_768, tied=True)
    model = llama(
        8, 4, hidden_size=1024, intermediate_size=4096, num_hidden_layers=8, vocab_size=32_768
    )
    place(model, GPU, gradient_checkpointing=checkpointing)
    updater = Updater(model, Schedule(1e-4, 2))
    batch = collate(rows(*[512] * 32), 0).to(GPU)
    torch.cuda.reset_peak_memory_stats()
    for step in range(2):
        for _ in range(2):  # in the second pass there are gradients already
            with torch.autocast("cuda", torch.bfloat16):
                values = token_logprobs(model, batch.input_ids, batch.loss_mask, batch.layout)
            values.sum().backward()
        updater.step(step)
    peak = torch.cuda.max_memory_allocated() / GIB
    setup = TrainingSetup(shape, gradient_checkpointing=checkpointing, gpu=True)
    planned = setup.gib(512 * 32)
    print(f"planned {planned:.2f} GiB, peak {peak:.2f} GiB")
    assert planned == pytest.approx(peak, rel=0.2)


def test_replies_are_drawn_from_a_nucleus_by_deterministic_algorithms():
    device = prepare_torch(cpus=1, seed=0)
    model = llama().to(device)

    def replies(temperature: float, top_p: float) -> list[list[int]]:
        groups = generate_tokens(
            model, [[5, 6, 7], [8, 9]], n=2, temperature=temperature, top_p=top_p,
            max_new_tokens=12, eos_token_id=1, pad_token_id=0,
            generator=torch.Generator(device).manual_seed(1),
        )  # fmt: skip
        return [reply.token_ids for group in groups for reply in group]

    assert replies(1.0, 0.9) == replies(1.0, 0.9)
    assert replies(1.0, 1e-6) == replies(0.0, 1.0)

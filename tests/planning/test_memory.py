"""Planned memory against the paper's numbers, and against a process that really trains."""

import copy
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caravan.planning import memory
from caravan.planning.devices import DEVICES, GIB, Placement
from caravan.planning.memory import HEADROOM, TrainingSetup, fitting_tokens, remedies
from caravan.planning.shapes import LLAMA, ModelShape
from caravan.training import output_head

H100 = Placement(DEVICES["h100"], 8, 80)
EIGHT = TrainingSetup(LLAMA[8], ranks=8, zero_stage=3, gradient_checkpointing=True)


def test_full_training_in_float32_holds_sixteen_bytes_of_a_parameter():
    setup = TrainingSetup(LLAMA[8], bf16=False)
    assert setup.state_bytes() == 16 * LLAMA[8].parameters


def test_zero_shards_what_figure_1_of_its_paper_says():
    # Stage 1 shares out the optimiser's state, 2 the gradients too, 3 the weights too. Weights and
    # gradients are in four bytes here, the moments in eight, and from stage 1 on each rank updates
    # a copy of its share of the weights.
    n = LLAMA[8].parameters
    setup = TrainingSetup(LLAMA[8], ranks=64, bf16=False)
    whole = [replace(setup, zero_stage=stage).state_bytes() / n for stage in range(3)]
    assert whole == pytest.approx([16, 8 + 12 / 64, 4 + 16 / 64])
    sharded = replace(setup, zero_stage=3)
    assert sharded.state_bytes() == pytest.approx(20 / 64 * n)


@given(st.integers(64, 8192))
def test_the_pass_that_is_said_to_fit_fits_and_twice_as_much_does_not(longest):
    tokens = fitting_tokens(EIGHT, H100, longest)
    assert tokens is not None
    assert tokens >= longest
    room = H100.memory_gib * HEADROOM - H100.device.base_gib
    assert EIGHT.gib(tokens) <= room
    assert EIGHT.gib(2 * tokens) > room


def test_adapters_and_four_bits_and_offloading_hold_less(tiny_policy):
    from peft import LoraConfig, get_peft_model

    model = copy.deepcopy(tiny_policy.model)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    trained, _ = adapted.get_nb_trainable_parameters()
    config = tiny_policy.model.config
    heads = config.num_attention_heads
    shape = ModelShape(
        config.hidden_size, config.intermediate_size, config.num_hidden_layers, heads, heads,
        config.vocab_size, tied=True,
    )  # fmt: skip
    assert TrainingSetup(shape, lora_rank=4).trained_parameters == trained

    whole = TrainingSetup(LLAMA[8], bf16=False)
    n = LLAMA[8].parameters
    lora = replace(whole, lora_rank=16)
    assert lora.state_bytes() == pytest.approx(4 * n + 16 * lora.trained_parameters)
    # Matrices under adapters in bf16; embeddings and head in float32, with autocast's copies.
    ends = 2 * 128_256 * 4096
    half = replace(lora, bf16=True).state_bytes()
    assert half == pytest.approx(2 * (n - ends) + 6 * ends + 16 * lora.trained_parameters, rel=1e-3)
    qlora = replace(lora, nf4=True, bf16=True)
    assert 5 * GIB < qlora.state_bytes() < 13 * GIB  # embeddings and head stay in full precision
    offloaded = replace(whole, ranks=8, zero_stage=2, offload="optimizer")
    assert offloaded.state_bytes() == pytest.approx(4 * n + 4 * n / 8)


def test_rlvr_on_a_gpu_samples_from_a_copy_in_half_precision():
    n = LLAMA[8].parameters
    on_gpu = TrainingSetup(LLAMA[8], gpu=True, samples=True)
    assert on_gpu.sampled_copy_bytes() == 2 * n
    assert replace(on_gpu, ranks=8, zero_stage=3).sampled_copy_bytes() == 2 * n
    assert replace(on_gpu, bf16=False).sampled_copy_bytes() == 0  # the policy itself
    assert replace(on_gpu, gpu=False).sampled_copy_bytes() == 0


def test_a_frozen_model_is_spread_like_a_trained_one_under_zero_3():
    n = LLAMA[8].parameters
    alone = TrainingSetup(LLAMA[8], trained=0, frozen=1)
    assert alone.state_bytes() == 4 * n
    assert replace(alone, ranks=8, zero_stage=2).state_bytes() == 4 * n
    of_eight = replace(alone, ranks=8, zero_stage=3)
    assert of_eight.state_bytes() == 4 * n / 8
    assert of_eight.gathered_bytes() == 4 * (
        2 * LLAMA[8].layer_parameters + LLAMA[8].head_parameters
    )
    assert of_eight.gib(0) == (4 * n / 8 + of_eight.gathered_bytes()) / GIB
    assert replace(of_eight, offload="all").state_bytes() == 0


def test_copies_that_are_not_held_are_not_counted_as_freed():
    on_gpu = TrainingSetup(LLAMA[8], gpu=True, gradient_checkpointing=True)
    copies = 2 * LLAMA[8].num_layers * LLAMA[8].layer_parameters
    assert on_gpu.freed_bytes() == copies
    assert replace(on_gpu, ranks=8, zero_stage=3).freed_bytes() == copies / 8
    spread = {"ranks": 8, "zero_stage": 3}
    for without in ({"nf4": True}, {"offload": "all", **spread}, {"bf16": False}, {"gpu": False}):
        assert replace(on_gpu, **without).freed_bytes() == 0


def test_the_output_head_is_planned_with_the_chunks_that_it_takes():
    assert memory.LOGITS_PER_CHUNK == output_head.LOGITS_PER_CHUNK_ON_GPU


def test_a_model_that_does_not_fit_is_told_what_would():
    alone = TrainingSetup(LLAMA[8], ranks=8)
    assert fitting_tokens(alone, H100, 2048) is None
    advice = remedies(alone, H100, 2048)
    assert "zero_stage" in advice
    stage = int(advice.split("zero_stage: ")[1][0])
    followed = replace(
        alone, zero_stage=stage, gradient_checkpointing="gradient_checkpointing" in advice
    )
    assert fitting_tokens(followed, H100, 2048) is not None
    assert fitting_tokens(replace(followed, zero_stage=stage - 1), H100, 2048) is None


def test_one_gpu_is_told_how_many_the_70b_needs():
    one = TrainingSetup(LLAMA[70], ranks=1)
    advice = remedies(one, replace(H100, count=1), 4096)
    gpus = int(advice.removeprefix("take ").split()[0])
    assert gpus >= 16 * LLAMA[70].parameters / (80 * GIB)
    assert gpus <= 64


TRAINS = """
import re, sys
import torch
from caravan.planning.shapes import ModelShape
from caravan.training.logprobs import token_logprobs
from transformers import LlamaConfig, LlamaForCausalLM

checkpointing, bf16, tokens = sys.argv[1] == "1", sys.argv[2] == "1", int(sys.argv[3])
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 2**20
torch.set_num_threads(1)
config = LlamaConfig(
    vocab_size=1024, hidden_size=256, intermediate_size=640, num_hidden_layers=4,
    num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
    attn_implementation="sdpa", use_cache=False)
model = LlamaForCausalLM(config).train()
if checkpointing:
    model.gradient_checkpointing_enable({"use_reentrant": False})
optimizer = torch.optim.AdamW(model.parameters())
before = peak()
ids = torch.randint(0, 1024, (tokens // 256, 256))
for _ in range(1):
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = -token_logprobs(model, ids, torch.ones_like(ids, dtype=torch.bool)).sum()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
print(before, peak())
"""
TRAINED = ModelShape(256, 640, 4, 4, 2, 1024, tied=True)


@pytest.mark.parametrize(
    ("checkpointing", "bf16", "tokens"),
    [(False, True, 4096), (False, False, 2048), (True, True, 8192)],
)
def test_a_process_that_trains_peaks_near_the_plan(checkpointing, bf16, tokens):
    done = subprocess.run(
        [sys.executable, "-c", TRAINS, str(int(checkpointing)), str(int(bf16)), str(tokens)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    before, peak = map(float, done.stdout.split())
    setup = TrainingSetup(TRAINED, bf16=bf16, gradient_checkpointing=checkpointing)
    weights = 4 * TRAINED.parameters / GIB
    assert setup.gib(tokens) == pytest.approx(peak - before + weights, rel=0.35)


def test_a_gpu_decodes_as_many_rows_at_once_as_have_room_and_a_cpu_all():
    length = 4096
    row = length * LLAMA[8].kv_bytes_per_token / GIB
    at_once, cache = memory.rows_at_once(1000, LLAMA[8], H100, 20.0, length, bf16=True)
    assert cache == pytest.approx(at_once * row)
    assert 20.0 + cache <= H100.memory_gib * HEADROOM < 20.0 + cache + row
    on_cpu = Placement(DEVICES["cpu"], 2, 8)
    assert memory.rows_at_once(1000, LLAMA[8], on_cpu, 0.0, length, bf16=False)[0] == 1000
    assert memory.rows_at_once(1000, LLAMA[8], H100, 73.5, length, bf16=True)[0] == 1

"""Counts of parameters and operations, against transformers and torch."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from caravan.errors import DataError
from caravan.planning.shapes import LLAMA, ModelShape, shape_of_config, shape_of_model
from caravan.training.models import save_model

SHAPES = st.builds(
    ModelShape,
    hidden_size=st.sampled_from([32, 64]),
    intermediate_size=st.sampled_from([48, 128]),
    num_layers=st.integers(1, 3),
    num_heads=st.sampled_from([2, 4]),
    num_kv_heads=st.sampled_from([1, 2]),
    vocab_size=st.integers(64, 300),
    tied=st.booleans(),
    head_dim=st.sampled_from([0, 8, 24]),
)


def config_of(shape: ModelShape) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=shape.vocab_size, hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size, num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads, num_key_value_heads=shape.num_kv_heads,
        tie_word_embeddings=shape.tied, head_dim=shape.head_dim or None,
    )  # fmt: skip


def meta_llama(shape: ModelShape) -> LlamaForCausalLM:
    """A Llama without memory behind it."""
    with torch.device("meta"):
        return LlamaForCausalLM(config_of(shape))


@given(SHAPES)
@settings(max_examples=25, deadline=None)
def test_parameters_are_those_that_transformers_makes(shape):
    model = meta_llama(shape)
    assert shape.parameters == model.num_parameters()
    assert shape_of_config(model.config.to_dict(), "config.json").parameters == shape.parameters


@pytest.mark.parametrize(("billions", "published"), [(1, 1.24), (3, 3.21), (8, 8.03), (70, 70.6)])
def test_the_known_llamas_have_their_published_sizes(billions, published):
    assert LLAMA[billions].parameters / 1e9 == pytest.approx(published, rel=0.005)
    assert meta_llama(LLAMA[billions]).num_parameters() == LLAMA[billions].parameters


@pytest.mark.parametrize("shape", [ModelShape(64, 128, 2, 4, 2, 300), LLAMA[8]])
def test_operations_of_a_forward_pass_are_those_that_torch_counts(shape):
    rows, length = 3, 48
    model = meta_llama(shape)
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(rows, length, dtype=torch.long, device="meta"))
    # Eager attention computes the half of the scores that causality then hides.
    whole = 2 * shape.num_layers * shape.attention_width * length * rows * length
    counted = counter.get_total_flops() - whole
    planned = shape.forward_flops(rows * length, length=length, head_tokens=rows * length)
    assert planned == pytest.approx(counted, rel=0.01)


def test_a_model_directory_tells_its_shape(tmp_path, tiny_policy):
    save_model(*tiny_policy, tmp_path / "model")
    shape, known_by = shape_of_model("model", tmp_path)
    assert shape.parameters == tiny_policy[0].num_parameters()
    assert known_by == "its config.json"


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("meta-llama/Llama-3.1-70B-Instruct", 70.55),
        ("internlm/internlm2_5-1_8b-chat", 1.8),
        ("Qwen/Qwen2.5-72B-Instruct", 72),
        ("mosaicml/mpt-7b-8k-chat", 7),
        ("allenai/Llama-3.1-Tulu-3-8B-RM", 8.03),
    ],
)
def test_a_name_on_the_hub_tells_the_size(name, billions):
    shape, _ = shape_of_model(name, Path("/nowhere"))
    assert shape.parameters / 1e9 == pytest.approx(billions, rel=0.04)


def test_a_name_without_a_size_is_refused():
    with pytest.raises(DataError, match="no size in its name"):
        shape_of_model("someone/a-model", Path("/nowhere"))

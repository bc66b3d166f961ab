"""Mistakes with which RLVR does not begin, or does not go on."""

import sys

import pytest
import torch

from caravan.data.io import write_rows
from caravan.errors import CaravanError, DataError, MissingExtraError
from caravan.recipe import VLLMRollouts
from caravan.stages import rlvr
from caravan.training.models import load_policy, save_model
from caravan.training.optim import NonFiniteError

from .conftest import row
from .small_run import PPO, config


def test_a_row_that_its_verifier_refuses_is_named(inputs, context, tmp_path):
    write_rows(tmp_path / "rows.jsonl", [row(7, ground_truth=None)])
    with pytest.raises(DataError, match="row 'toy/7'"):
        rlvr.run(config(), inputs | {"dataset": tmp_path}, context("run"))


def test_an_unknown_verifier_is_refused_before_anything_runs(inputs, context, tmp_path):
    write_rows(tmp_path / "rows.jsonl", [row(7, verifier="gsm9k")])
    with pytest.raises(
        DataError, match="row 'toy/7': unknown verifier 'gsm9k'; did you mean 'gsm8k'"
    ):
        rlvr.run(config(), inputs | {"dataset": tmp_path}, context("run"))


def test_no_prompt_to_train_on_says_what_there_is(inputs, context):
    with pytest.raises(DataError, match="verifiable rows: digits, other; skills asked for: maths"):
        rlvr.run(config(skills=("maths",)), inputs, context("run"))


def test_vllm_that_is_not_installed_is_refused_before_anything_is_read(
    context, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "vllm", None)
    nowhere = {"policy": tmp_path / "none", "dataset": tmp_path / "none"}
    with pytest.raises(MissingExtraError, match="rollouts of kind vllm needs 'vllm'"):
        rlvr.run(config(rollouts=VLLMRollouts()), nowhere, context("run"))


def test_weights_that_are_not_numbers_are_an_error(inputs, context, tmp_path):
    model, tokenizer = load_policy(inputs["policy"])
    with torch.no_grad():
        model.get_input_embeddings().weight[5:].fill_(float("nan"))
    save_model(model, tokenizer, tmp_path / "broken")
    with pytest.raises(CaravanError, match="not finite"):
        rlvr.run(config(), inputs | {"policy": tmp_path / "broken"}, context("run"))


def test_a_diverging_run_ends_with_a_clear_error(inputs, context):
    there = context("run")
    # A recipe refuses such a rate; copies are not validated.
    wild = config(PPO, max_steps=30, num_epochs=2).model_copy(update={"learning_rate": 1e4})
    with pytest.raises(NonFiniteError, match=r"[Ll]ower learning_rate"):
        rlvr.run(wild, inputs, there)

"""The benchmark for a GPU runs from end to end, in a shape that a CPU can take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.benchmarks import gpu_attention, gpu_training
from tests.benchmarks import training_work as w


@pytest.mark.slow
@pytest.mark.timeout(900)  # five processes, each of which imports everything
def test_the_gpu_benchmark_measures_all_sides_of_both_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    gpu_training.main(["tiny"], repetitions=1)

    results = json.loads((tmp_path / "gpu_training.json").read_text())
    assert [(r["task"], r["side"]) for r in results] == [
        ("sft", "caravan"), ("sft", "caravan-compiled"), ("sft", "trl-gpu-sft"),
        ("dpo", "caravan"), ("dpo", "trl-gpu-dpo"),
    ]  # fmt: skip
    losses = {r["side"]: r["runs"][0]["first"].get("loss") for r in results if r["task"] == "sft"}
    assert losses["caravan-compiled"] == pytest.approx(losses["caravan"], rel=1e-3)
    assert all(rate > 0 for r in results for rate in r["tokens_per_second"])
    table = capsys.readouterr().out
    assert table.count("| tiny |") == 5


def test_the_sides_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order = []

    class Recorded:
        def __init__(self, task: str, side: str, name: str) -> None:
            self.side = side

        def __enter__(self) -> Recorded:
            return self

        def __exit__(self, *_: object) -> None:
            order.append("end")

        def train(self, steps: int) -> dict[str, float]:
            order.append(self.side)
            return {"tokens": steps, "seconds": 1.0, "peak_mib": 1024.0}

    monkeypatch.setattr(gpu_training, "Side", Recorded)
    found = gpu_training.measure("sft", "tiny", ("a", "b"), 2)
    assert order == ["a", "b"] * 3 + ["end", "end"]  # the first turn warms up
    assert [len(result["tokens_per_second"]) for result in found] == [2, 2]


def test_the_model_of_the_benchmark_has_the_weights_of_a_stage() -> None:
    assert {p.dtype for p in w.model(w.WORK["tiny"]).parameters()} == {torch.float32}


def test_flops_per_token_of_llama_3_2_3b() -> None:
    """About 6 per parameter, with a fifth of the output head (what is trained on) and with
    attention over the rows as they are."""
    share = 1 - w.WORK["3B"].prompt_share
    parameters = 28 * (2 * 3072**2 + 2 * 3072 * 1024 + 3 * 3072 * 8192) + share * 3072 * 128_256
    found = gpu_training.flops_per_token(w.WORK["3B"])
    assert 6 * parameters < found < 6.6 * parameters


def test_kernels_for_attention_are_held_against_float32(capsys: pytest.CaptureFixture[str]) -> None:
    gpu_attention.main("tiny")  # on a CPU with the plain one, in bfloat16
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| plain |")]
    *_, off_by, same_bytes = [cell.strip() for cell in row.strip("|").split("|")]
    assert 0.0005 < float(off_by.rstrip("%")) / 100 < 0.01
    assert same_bytes == "True"

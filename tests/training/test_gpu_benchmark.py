"""The benchmark for a GPU runs from end to end, in a shape that a CPU can take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.benchmarks import gpu_training
from tests.benchmarks import training_work as w


@pytest.mark.slow
@pytest.mark.timeout(900)  # four processes, each of which imports everything
def test_the_gpu_benchmark_measures_both_sides_of_both_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    gpu_training.main(["tiny"], repetitions=1)

    results = json.loads((tmp_path / "gpu_training.json").read_text())
    assert [(r["task"], r["side"]) for r in results] == [
        ("sft", "caravan"), ("sft", "trl-gpu-sft"), ("dpo", "caravan"), ("dpo", "trl-gpu-dpo"),
    ]  # fmt: skip
    assert all(rate > 0 for r in results for rate in r["tokens_per_second"])
    table = capsys.readouterr().out
    assert table.count("| tiny |") == 4


def test_flops_per_token_of_llama_3_1_8b() -> None:
    """About 6 per parameter, without the embedding, with three fifths of the output head (what is
    trained on) and with attention over the rows as they are."""
    parameters = 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14_336) + 0.6 * 4096 * 128_256
    found = gpu_training.flops_per_token(w.WORK["8B"])
    assert 6 * parameters < found < 6.6 * parameters

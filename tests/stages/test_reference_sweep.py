"""A sweep over beta computes the log-probabilities of the reference policy once."""

from __future__ import annotations

from pathlib import Path

import pytest

from caravan.registry import Registry
from caravan.settings import Settings
from caravan.stages.configs import DPOStageConfig, ReferenceStageConfig
from caravan.stages.execute import execute
from caravan.store import open_store
from tiny import ONE_CORE, write_inputs

BETAS = (0.5, 1.0, 2.5, 5.0, 10.0)
CONFIG = DPOStageConfig(
    learning_rate=1e-3, max_length=64, tokens_per_pass=256, pairs_per_step=10, max_steps=2,
    resources=ONE_CORE,
)  # fmt: skip


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """`execute` limits them in the environment: put it back afterwards."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "1")


def test_five_betas_share_one_reference_pass(threads: None, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home", heartbeat_seconds=0.5)
    store = open_store(settings=settings)
    given = write_inputs(tmp_path / "made")
    model = store.put(given["model"], "model").digest
    pairs = store.put(given["pairs"], "pairs").digest
    models, origins = set(), []
    with Registry(settings.resolved_registry_url) as registry:
        for beta in BETAS:
            config = CONFIG.derive(beta=beta)
            run = registry.create_run({}, name=f"beta-{beta}", seed=17, recipe_digest="d" * 64)
            asked = ReferenceStageConfig.of(config)
            inputs = {"model": model, "pairs": pairs}
            once = execute("reference", "reference", asked, inputs, run, settings)
            tuned = execute(
                "dpo", "dpo", config, {**inputs, "reference": once["logprobs"]}, run, settings
            )
            models.add(tuned["model"])
            origins.append({s.node: s.reused_from for s in registry.stage_runs(run)})

    assert len(models) == len(BETAS)
    assert origins[0] == {"reference": None, "dpo": None}
    computed = {row["reference"] for row in origins[1:]}
    assert len(computed) == 1  # all four took the first run's
    assert None not in computed
    assert all(row["dpo"] is None for row in origins)

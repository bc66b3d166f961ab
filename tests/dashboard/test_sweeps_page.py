"""The page of sweeps, drawn in process against a real registry."""

from __future__ import annotations

import re

from drawn import checked, markup, plain
from sample_sweep import BETA, TWO_AXES, write_sweep

from caravan_dashboard.markup import legend
from caravan_dashboard.palette import SERIES


def test_a_sweep_shows_its_arms_over_seeds_and_what_failed(open_page, home, registry):
    run_ids = write_sweep(registry, "sweep:c0ffee", BETA, failed=[(("10",), 19), (("2",), 18)])
    write_sweep(registry, "sweep:older", {"dpo.beta": {"3": 0.0}}, seeds=[17])
    assert 'href="./sweeps?sweep=sweep%3Ac0ffee"' in markup(open_page("runs"))

    app = open_page("sweeps", sweep="sweep:c0ffee")
    shown = markup(app)
    for beta, verdict in (("5", "better"), ("10", "worse"), ("2", "within the noise")):
        row = re.search(rf"dpo.beta={beta}<.*?</tr>", shown, re.S)
        assert row
        assert f"<div>{verdict}</div>" in row[0], beta
        assert ("2 of 3 seeds" in row[0]) == (beta != "5")
    assert shown.count("failed") == 2
    assert f"run={run_ids[0]}" in shown
    assert "Intervals count the noise of seeds and of questions" in plain(app)
    assert len(app.get("vega_lite_chart")) == 4  # the mean, and each task

    app.segmented_control[0].set_value("sft").run()
    row = re.search(r"dpo.beta=5<.*?</tr>", markup(checked(app)), re.S)
    assert row
    assert "within the noise" in row[0]


def test_a_sweep_of_one_seed_says_that_its_noise_is_unknown(open_page, home, registry):
    write_sweep(registry, "sweep:one", {"dpo.beta": {"1": 0.0, "2": 0.1}}, seeds=[17])
    app = open_page("sweeps", sweep="sweep:one")
    assert "one seed: noise unknown" in markup(app)
    assert "Sweep over seeds too: --over seed=17,18,19" in plain(app)


def test_a_sweep_over_two_fields_has_a_colour_for_each_value_of_the_second(
    open_page, home, registry
):
    write_sweep(registry, "sweep:two", TWO_AXES, seeds=(17, 18))
    app = open_page("sweeps", sweep="sweep:two")
    colours = dict(zip([f"dpo.beta={b}" for b in (1, 2, 5)], SERIES, strict=False))
    assert legend(colours) in markup(app)


def test_a_sweep_without_scores_shows_its_runs(open_page, home, registry):
    failed = [((beta,), 17) for beta in BETA["dpo.beta"]]
    write_sweep(registry, "sweep:none", BETA, seeds=[17], failed=failed)
    app = open_page("sweeps", sweep="sweep:none")
    assert "No scores yet" in plain(app)
    assert markup(app).count("failed") == 4

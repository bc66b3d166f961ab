"""The page of training curves."""

from __future__ import annotations

from drawn import checked, markup
from sample_run import SampleRun


def test_curves_of_runs_lie_over_each_other_with_what_differs(open_page, home, run_ids, tmp_path):
    other = SampleRun(home, tmp_path / "scratch", seed=31)
    other.recipe = other.recipe.derive(sft=other.recipe.sft.derive(learning_rate=1e-3))
    other_id = other.create()
    other.model("sft", [], 1.6, 0.5)
    app = open_page("curves", run=run_ids["complete"], stage="sft", metric="loss",
                    **{"with": other_id})  # fmt: skip

    (chart,) = app.get("vega_lite_chart")
    assert f'"domain": ["{run_ids["complete"]}", "{other_id}"]' in chart.proto.spec
    assert '"title": "step"' in chart.proto.spec
    assert markup(app).count('class="cv-line"') == 2
    assert '<span class="cv-mono">sft.learning_rate</span>' in markup(app)
    assert "<td>0.001</td>" in markup(app)

    app.segmented_control(key="over").set_value("Tokens").run()
    assert "without a count of tokens" in markup(checked(app))
    app.segmented_control(key="over").set_value("Time")
    app.slider(key="smoothing").set_value(0.9)
    app.toggle(key="log").set_value(True)
    (chart,) = checked(app.run()).get("vega_lite_chart")
    assert "since the first step" in chart.proto.spec
    assert '"type": "log"' in chart.proto.spec
    app.selectbox(key="stage").set_value("rlvr").run()
    assert "no rlvr yet" in markup(checked(app))
    app.multiselect(key="metric").set_value(["kl"]).run()
    app.selectbox(key="stage").set_value("sft").run()  # which has none
    assert len(checked(app).get("vega_lite_chart")) == 4

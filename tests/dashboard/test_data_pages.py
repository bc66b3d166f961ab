"""The pages of what is trained on: rows of sources, and pairs."""

from __future__ import annotations

from drawn import checked, markup, plain

from caravan_dashboard import charts
from caravan_dashboard.markup import legend


def test_the_data_page_follows_rows_from_source_to_training(open_page, run_ids):
    app = open_page("data", run=run_ids["complete"])

    assert [m.value for m in app.metric] == ["118", "100", "94", "80", "70"]
    assert len(app.get("vega_lite_chart")) == 2
    for names in (("math", "precise-if", "chat"), ("word-problems", "constraints", "small-talk")):
        assert legend(charts.colours(names)) in markup(app)


def test_rows_are_browsed_by_page_and_source(open_page, run_ids):
    app = open_page("data", run=run_ids["complete"], view="Rows", source="constraints", page="2")

    assert "9–16 of 40 rows" in plain(app)
    assert "constraints/8" in markup(app)
    assert "word-problems/" not in markup(app)


def test_the_first_page_of_a_filter_is_shown(open_page, run_ids):
    app = open_page("pairs", run=run_ids["complete"], page="4")
    assert "16–20 of 23 pairs" in plain(app)

    app.multiselect(key="skill").set_value(["math"]).run()

    assert "1–5 of 8 pairs" in plain(checked(app))


def test_pairs_are_filtered_by_model_and_margin(open_page, run_ids):
    app = open_page("pairs", run=run_ids["complete"], margin="2.0")

    assert "1–5 of 11 pairs" in plain(app)
    assert markup(app).count(">chosen</span>") == 5
    assert 'class="cv-chosen"' in markup(app)


def test_pairs_that_nobody_rated_are_shown_as_such(open_page, run_ids):
    app = open_page("pairs", run=run_ids["failed"])
    assert "1–5 of 7 pairs" in plain(app)
    assert '<span class="cv-name">rating</span>–' in markup(app)
    assert "<span>unknown</span>" in markup(app)


def test_a_pair_says_how_each_aspect_was_rated_and_why(open_page, run_ids):
    assert "The better reply" not in markup(open_page("pairs", run=run_ids["complete"]))
    shown = markup(open_page("pairs", run=run_ids["complete"], ratings="true"))

    assert shown.count("The better reply.") == shown.count("The worse reply.") == 5
    assert shown.index("The better reply.") < shown.index("The worse reply.")
    assert '<span class="cv-name">instruction following</span>2' in shown
    unjudged = open_page("pairs", run=run_ids["failed"], ratings="true")
    assert unjudged.toggle(key="ratings").disabled

"""People rate pairs blind, and the page says how far they agree with the judge."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress

import pandas as pd
import pytest
from drawn import checked, markup, plain
from playwright.sync_api import expect
from sample_rows import EVIL, pairs
from streamlit.testing.v1 import AppTest

from caravan.registry import Registry
from caravan_dashboard import preferences, rating
from caravan_dashboard.launch import command

LABELS = ["Left is better", "Tie", "Right is better", "Skip", "Back"]
PAIRS = {pair.id: pair for pair in pairs()}


@pytest.fixture
def digest(registry: Registry, run_ids: dict[str, str]) -> str:
    stages = registry.stage_runs(run_ids["complete"])
    return next(stage.outputs["pairs"] for stage in stages if stage.node == "pair")


@pytest.fixture
def said(registry: Registry, digest: str) -> Callable[[], dict[str, str]]:
    """What ann has said, by pair."""
    return lambda: {r.pair_id: r.choice for r in registry.pair_ratings(digest)}


def press(app: AppTest, label: str) -> None:
    next(button for button in app.button if button.label == label).click()
    checked(app.run())


def asked(app: AppTest) -> str:
    """The id of the pair that is asked about."""
    found = re.search(r'class="cv-mono">([^<]+)<', markup(app))
    assert found is not None
    return found[1]


def left(app: AppTest) -> str:
    """Which side of the pair stands on the left."""
    cards = re.findall(r'class="cv-card"><div class="cv-text">(.*?)</div>', markup(app), re.DOTALL)
    sides = ["chosen" if "gives some away" in card else "rejected" for card in cards]
    assert sorted(sides) == ["chosen", "rejected"]
    return sides[0]


def test_pairs_are_rated_blind_one_after_another(open_page, run_ids, said):
    app = open_page("pairs", run=run_ids["complete"], view="Rate")
    expected = {}
    for label in ("Left is better", "Right is better", "Tie", "Skip"):
        assert [button.label for button in app.button] == LABELS
        assert not re.search("sft|terse|rejected|margin|rating", markup(app))
        other = {"chosen": "rejected", "rejected": "chosen"}[left(app)]
        choices = {"Left is better": left(app), "Right is better": other}
        expected[asked(app)] = choices.get(label, label.lower())
        press(app, label)
        assert said() == expected
    assert asked(app) not in expected


def test_a_rating_is_changed_by_going_back(open_page, run_ids, said):
    app = open_page("pairs", run=run_ids["complete"], view="Rate")
    assert next(b for b in app.button if b.label == "Back").disabled
    first = asked(app)
    press(app, "Tie")
    second = asked(app)
    press(app, "Skip")
    third = asked(app)

    press(app, "Back")
    assert asked(app) == app.query_params["pair"] == second
    press(app, "Back")
    assert asked(app) == first
    press(app, "Left is better")
    assert said()[first] in ("chosen", "rejected")
    assert said()[second] == "skip"
    assert asked(app) == third
    assert "pair" not in app.query_params


def test_a_skill_may_be_rated_to_its_end(open_page, run_ids, said):
    app = open_page("pairs", run=run_ids["complete"], view="Rate", skill="math")
    sides = set()
    for _ in range(8):
        sides.add(left(app))
        press(app, "Tie")

    assert sides == {"chosen", "rejected"}
    assert {PAIRS[id].skill for id in said()} == {"math"}
    assert "You have seen all of these pairs." in plain(app)
    press(app, "Back")
    assert asked(app) == list(said())[-1]


def test_order_and_sides_say_nothing_about_what_was_chosen():
    ids = [f"source/{i}" for i in range(2000)]
    facts = pd.DataFrame([preferences.facts(pair.model_dump()) for pair in PAIRS.values()])
    ann, bob = ([rating.left_is_chosen(id, person) for id in ids] for person in ("ann", "bob"))

    assert 900 < sum(ann) < 1100
    assert 900 < sum(a == b for a, b in zip(ann, bob, strict=True)) < 1100
    assert list(facts.sort_values("order")["id"]) != list(PAIRS)


@pytest.fixture
def rated(registry: Registry, digest: str) -> list[str]:
    """Three pairs are rated by two people, who disagree with the judge about the second."""
    ids = list(PAIRS)[:3]
    for person, choices in {
        EVIL: ("chosen", "rejected", "chosen"),
        "bob": ("chosen", "rejected", "tie"),
    }.items():
        for id, choice in zip(ids, choices, strict=True):
            registry.rate_pair(digest, id, choice, person=person)
    return ids


def test_the_overview_says_how_far_people_agree(open_page, run_ids, rated):
    app = open_page("pairs", run=run_ids["complete"])
    shown = markup(app)

    assert "<img" not in shown
    assert '<td class="cv-num"><b>50.0 %</b>' in shown  # bob: one of two
    agreed = r"people with {}</span><b>66.7 %</b><span class=\"cv-dim\"> 20.8–93.9, 3 pairs<"
    assert re.search(agreed.format("the judge"), shown)
    assert re.search(agreed.format("each other"), shown)
    assert '<span class="cv-name">bob</span>rejected' in shown


def test_pairs_are_filtered_by_what_people_said(open_page, run_ids, rated):
    app = open_page("pairs", run=run_ids["complete"], people="Rated by people")
    assert "1–3 of 3 pairs" in plain(app)

    app.selectbox(key="people").set_value("People disagree").run()
    assert "1–1 of 1 pairs" in plain(checked(app))
    assert f'class="cv-mono">{rated[1]}<' in markup(app)


def test_pairs_that_nobody_rated_have_no_agreement(open_page, run_ids):
    app = open_page("pairs", run=run_ids["complete"], people="People disagree")
    assert "1–5 of 23 pairs" in plain(app)
    assert "people with" not in markup(app)


def test_pairs_of_ones_own_have_no_judge(open_page, run_ids, registry):
    stages = registry.stage_runs(run_ids["failed"])
    digest = next(stage.outputs["pairs"] for stage in stages if stage.node == "pair")
    registry.rate_pair(digest, "word-problems/0", "chosen", person="ann")

    shown = markup(open_page("pairs", run=run_ids["failed"]))
    assert "Agrees with the pairs" in shown
    assert "judge" not in shown


def until_drawn(page, seen, **timeout):
    """Elements of the page before may stand beside the new ones until the script has ended."""
    expect(page.get_by_text(f"You have seen {seen} of 23 pairs").first).to_be_visible(**timeout)
    expect(page.locator('[data-test-script-state="notRunning"]')).to_be_visible()


def press_key(page, key, seen):
    """A press that a busy machine loses is made again."""
    for _ in range(8):
        page.keyboard.press(key)
        with suppress(AssertionError):
            return until_drawn(page, seen, timeout=30_000)
    pytest.fail(f"the key {key} does nothing")


def test_a_pair_is_rated_by_a_key(start_dashboard, page, run_ids, said):
    page.goto(f"{start_dashboard(command)}/pairs?run={run_ids['complete']}")
    page.get_by_text("Rate", exact=True).click()
    until_drawn(page, seen=0)
    for seen, key in enumerate(("1", "2", "3", "4"), start=1):
        press_key(page, key, seen)

    first, second, third, fourth = said().values()
    assert {first, third} <= {"chosen", "rejected"}
    assert (second, fourth) == ("tie", "skip")
    page.get_by_text("Overview", exact=True).click()
    expect(page.get_by_text("Do people agree with the judge?")).to_be_visible()
    expect(page.get_by_role("row").filter(has_text=re.compile("^ann311"))).to_be_visible()

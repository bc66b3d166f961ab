"""`caravan data ratings`: how far people agree with the judge, and their pairs to train on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from caravan.data.io import ROWS, write_rows
from caravan.data.records import Message, Pair
from caravan.errors import CaravanError
from caravan.recipe import PairSource
from caravan.registry import Registry
from caravan.settings import Settings
from caravan.stages.read_pairs import load_pairs
from caravan.store import open_store
from caravan_pipelines.cli.app import app

PROMPT = (
    Message(role="system", content="Be brief."),
    Message(role="user", content="Hello"),
    Message(role="assistant", content="Hi."),
    Message(role="user", content="Which river\nis long?"),
)


def pair(i: int) -> Pair:
    return Pair(
        id=f"chat/{i}", prompt=PROMPT, chosen=f"The Nile, {i} times.", rejected=" Human: no\n",
        chosen_model="sft", rejected_model="terse", chosen_rating=4.0, rejected_rating=2.0,
        source="chat", skill="chat",
    )  # fmt: skip


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("CARAVAN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    return Registry(Settings(home=tmp_path / "home").resolved_registry_url)


@pytest.fixture
def digest(registry: Registry, tmp_path: Path) -> str:
    """Six pairs of a run, which is the latest."""
    store = open_store(settings=Settings(home=tmp_path / "home"))
    write_rows(tmp_path / "pairs" / ROWS, map(pair, range(6)))
    made = store.put(tmp_path / "pairs", "pairs")
    run_id = registry.create_run({}, name="mine", seed=1, recipe_digest="d" * 64)
    stage = registry.open_stage_run(run_id, "pair", "pair", "key")
    registry.start_stage_run(stage.id)
    registry.succeed_stage_run(stage.id, {"pairs": (made, store.uri(made.digest))})
    return made.digest


@pytest.fixture
def rated(registry: Registry, digest: str) -> str:
    for person, choices in {
        "ann@example.com": ("chosen", "chosen", "rejected", "tie", "skip"),
        "[b]bob": ("chosen", "rejected", "rejected"),
    }.items():
        for i, choice in enumerate(choices):
            registry.rate_pair(digest, f"chat/{i}", choice, person=person)
    return digest


def ratings(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["data", "ratings", *map(str, arguments)])
    if done.exception is not None:
        raise done.exception
    return done.output


def test_the_agreement_of_people_with_the_judge_and_each_other(rated):
    output = ratings()

    assert f"pairs {rated[:12]}: 4 rated by people" in output
    rows = [line.split() for line in output.splitlines()]
    (ann,) = (row for row in rows if row[:1] == ["ann@example.com"])
    assert ann[1:4] == ["4", "1", "1"]
    assert " ".join(ann[4:]) == "66.7 % (20.8 to 93.9) of 3 pairs"
    assert "[b]bob" in output
    assert "people and the judge: 50.0 %" in output
    assert "people among themselves: 66.7 % (20.8 to 93.9) of 3 pairs; Krippendorff's" in output
    assert ratings(rated[:8]) == ratings(f"latest:{'pair/pairs'}") == output
    found = json.loads(ratings("--json"))
    assert (found["pairs"], found["with_judge"]["n"]) == (4, 3)


def test_what_people_want_is_read_back_as_pairs_to_train_on(rated, tmp_path):
    target = tmp_path / "people.jsonl"
    output = ratings("latest", "--to", target)
    assert "people.jsonl: 2 pairs; left out: 2 that people call equal, or are split on" in output

    source = PairSource.model_validate(
        {"name": "people", "license": "MIT", "skill": "chat",
         "origin": {"kind": "files", "paths": ["people.jsonl"]}}
    )  # fmt: skip
    first, second = load_pairs(source, tmp_path)
    assert first.prompt == second.prompt == PROMPT
    assert (first.chosen, first.rejected) == (pair(0).chosen, pair(0).rejected)
    assert (second.chosen, second.rejected) == (pair(2).rejected, pair(2).chosen)
    assert (second.chosen_model, second.rejected_model) == ("terse", "sft")
    assert second.chosen_rating is None  # the judge's would say otherwise

    with pytest.raises(CaravanError, match=r"people\.jsonl exists; name a file that does not"):
        ratings("latest", "--to", target)


def test_without_ratings_it_says_where_people_rate(digest, tmp_path):
    with pytest.raises(CaravanError, match="nobody has rated a pair of latest yet: people do so"):
        ratings("--to", tmp_path / "people.jsonl")
    assert not (tmp_path / "people.jsonl").exists()
    with pytest.raises(CaravanError, match="no run 'nothing'"):
        ratings("nothing")

"""Every test runs on SQLite and on PostgreSQL."""

from datetime import UTC

import pytest

from caravan.errors import RegistryError
from caravan.registry import State
from registry_stages import artifact, stage


def test_tags_and_notes(registry, new_run):
    run_id = new_run(tags=["b"])
    registry.set_tags(run_id, ["a", "c", "a"])
    first = registry.add_note(run_id, "look at <b>this</b>", author="ann", subject="sft")
    second = registry.add_note(run_id, "mistake", author="bob")
    registry.edit_note(first, "better")
    registry.delete_note(second)

    assert registry.tags(run_id) == ["a", "c"]
    [note] = registry.notes(run_id)
    assert (note.text, note.author, note.subject) == ("better", "ann", "sft")
    with pytest.raises(RegistryError, match="1 to 128 characters"):
        registry.set_tags(run_id, [" "])
    with pytest.raises(RegistryError, match="a note needs some text"):
        registry.add_note(run_id, "\n", author="ann")


def said(registry, letter="a"):
    return {(r.pair_id, r.person): r.choice for r in registry.pair_ratings(letter * 64)}


def test_of_each_person_and_pair_the_last_rating_counts(registry):
    registry.add_artifact(artifact("a", "pairs"), "file:///a")
    registry.add_artifact(artifact("b", "pairs"), "file:///b")
    registry.rate_pair("a" * 64, "x/1", "chosen", person="ann")
    registry.rate_pair("a" * 64, "x/2", "tie", person="ann")
    registry.rate_pair("a" * 64, "x/1", "rejected", person="bob")
    registry.rate_pair("a" * 64, "x/1", "skip", person="ann")

    assert said(registry) == {
        ("x/1", "ann"): "skip", ("x/2", "ann"): "tie", ("x/1", "bob"): "rejected",
    }  # fmt: skip
    last = registry.pair_ratings("a" * 64)[-1]
    assert (last.person, last.at.tzinfo) == ("ann", UTC)  # changed last
    assert said(registry, "b") == {}
    assert registry.rated_pairs() == {"a" * 64: 3}
    with pytest.raises(RegistryError, match="no pairs cccccccccccc; somebody has deleted them"):
        registry.rate_pair("c" * 64, "x/1", "chosen", person="ann")


def test_rated_pairs_outlive_their_run_until_the_ratings_are_given_up(registry, new_run):
    run_id, gone = new_run(), []
    stage(registry, run_id, "pair", "k", outputs="ab")
    registry.rate_pair("a" * 64, "x/1", "chosen", person="ann")
    registry.update_run_state(run_id, State.CANCELLED)

    assert not registry.collect("a" * 64, lambda: gone.append("a"), rated=True)  # a run's
    registry.delete_runs([run_id])
    assert registry.collect("b" * 64, lambda: gone.append("b"))
    assert not registry.collect("a" * 64, lambda: gone.append("a"))
    assert said(registry) == {("x/1", "ann"): "chosen"}
    assert registry.artifact("a" * 64).kind == "dataset"

    assert registry.collect("a" * 64, lambda: gone.append("a"), rated=True)
    assert gone == ["b", "a"]
    assert registry.rated_pairs() == {}

"""The pocket world: what is held out stays held out, and every text can be repeated."""

from __future__ import annotations

import subprocess
import sys
from itertools import islice

import pytest

from caravan.data.ngrams import NgramIndex
from caravan.pocket import corpus, skills, sources, tasks
from caravan.pocket.personas import PERSONAS
from caravan.pocket.world import NAMES, OBJECTS, held_out

ROWS = 3000


def _overlaps(source: str) -> dict[str, float]:
    """Share of each task's instances that a row of the source covers by more than half."""
    instances = [i for task in tasks.TASKS for i in tasks.instances(task, 800)]
    index = NgramIndex([i.messages[-1].content for i in instances])
    hit: set[int] = set()
    for row in sources.GENERATORS[source](ROWS, 17):
        covered = index.coverages([m.content for m in row.messages if m.role == "user"])
        hit |= {number for number, share in covered.items() if share > 0.5}
    sizes = {task: sum(i.id.startswith(f"{task}/") for i in instances) for task in tasks.TASKS}
    return {
        task: sum(instances[n].id.startswith(f"{task}/") for n in hit) / size
        for task, size in sizes.items()
    }


@pytest.mark.parametrize("source", sorted(set(sources.GENERATORS) - {"leaky"}))
def test_clean_sources_stay_far_below_the_two_per_cent_rule(source: str) -> None:
    assert max(_overlaps(source).values()) < 0.015


def test_the_leaky_source_is_plainly_contaminated() -> None:
    assert _overlaps("leaky")["pocket-math"] > 0.3


def test_training_and_evaluation_never_share_a_prompt() -> None:
    asked = {i.messages[-1].content for task in tasks.TASKS for i in tasks.instances(task, 800)}
    for name in sorted(set(sources.GENERATORS) - {"leaky"}):
        rows = sources.GENERATORS[name](ROWS, 23)
        assert not asked & {row.messages[0].content for row in rows}


def test_about_an_eighth_of_all_pairs_is_held_out() -> None:
    held = sum(held_out("math", name, thing) for name in NAMES for thing in OBJECTS)
    assert 0.10 < held / (len(NAMES) * len(OBJECTS)) < 0.15


def test_no_exercise_of_the_corpus_uses_a_held_out_pair() -> None:
    questions = [
        item
        for text in islice(corpus.documents(4000, 5), 4000)
        if (item := skills.read(text.partition("\n")[0])) and item.skill == "math"
    ]
    assert len(questions) > 300
    for question in questions:
        assert not held_out("math", question.fields["name"], question.fields["thing"])


def test_every_task_has_different_instances_and_more_come_after_the_first() -> None:
    for task in tasks.TASKS:
        few, many = tasks.instances(task, 50), tasks.instances(task, 100)
        assert many[:50] == few
        assert len({i.messages[-1].content for i in many}) == len(many) == 100


def test_the_same_seed_writes_the_same_text_in_another_process() -> None:
    program = (
        "import hashlib; from caravan.pocket import corpus, sources;"
        "text = ''.join(corpus.documents(300, 3));"
        "text += ''.join(str(r) for g in sources.GENERATORS.values() for r in g(50, 3));"
        "print(hashlib.sha256(text.encode()).hexdigest())"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        ).stdout
        for seed in ("1", "2")
    ]
    assert runs[0] == runs[1]
    assert len(runs[0]) == 65
    assert list(corpus.documents(20, 3)) != list(corpus.documents(20, 4))


def test_there_are_more_than_a_hundred_different_personas() -> None:
    assert len(set(PERSONAS)) == len(PERSONAS) > 100

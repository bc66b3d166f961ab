"""Every test runs on SQLite and on PostgreSQL."""

from itertools import pairwise

import pytest
import sqlalchemy as sa

from caravan.errors import RegistryError
from caravan.store import Artifact
from registry_stages import artifact, stage


def test_lineage_goes_back_to_the_source_and_forward_to_the_report(registry, new_run):
    run_id = new_run()
    stage(registry, run_id, "curate", "1", outputs="a")
    stage(registry, run_id, "mix", "2", inputs="a", outputs="b")
    stage(registry, run_id, "base", "3", outputs="c")
    stage(registry, run_id, "sft", "4", inputs="bc", outputs="d")
    stage(registry, run_id, "evaluate", "5", inputs="d", outputs="e")

    back = registry.lineage("d" * 64, "in")
    assert {edge.node for edge in back} == {"curate", "mix", "base", "sft"}
    assert [(e.node, e.name, e.depth) for e in back if e.direction == "out"] == [
        ("sft", "out-d", 0), ("mix", "out-b", 1), ("base", "out-c", 1), ("curate", "out-a", 2),
    ]  # fmt: skip
    forward = registry.lineage("a" * 64, "out")
    assert [e.node for e in forward if e.direction == "out"] == ["mix", "sft", "evaluate"]
    assert registry.lineage("f" * 64, "in") == []


def test_lineage_counts_the_same_work_once_and_ends_on_a_stage_that_changes_nothing(
    registry, new_run
):
    first, second = new_run(), new_run()
    origin = stage(registry, first, "mix", "1", inputs="a", outputs="a")
    opened = registry.open_stage_run(second, "mix", "mix", "1" * 64)
    registry.reuse_stage_run(opened.id, origin)

    assert {edge.stage_run_id for edge in registry.lineage("a" * 64, "in")} == {origin.id}
    own = registry.lineage("a" * 64, "in", run_id=second)
    assert {edge.stage_run_id for edge in own} == {opened.id}


def test_artifacts_are_in_the_order_of_the_numbers_in_their_names(registry, new_run):
    run_id = new_run()
    opened = registry.open_stage_run(run_id, "rlvr", "rlvr", "1" * 64)
    registry.start_stage_run(opened.id, {})
    names = ["rollouts", "step-100", "step-40", "model", "step-1000"]
    made = {name: (artifact("abcde"[i]), "file:///x") for i, name in enumerate(names)}
    registry.succeed_stage_run(opened.id, made)

    expected = ["model", "rollouts", "step-40", "step-100", "step-1000"]
    assert list(registry.stage_run(opened.id).outputs) == expected
    digests = registry.stage_run(opened.id).outputs
    reads = registry.open_stage_run(run_id, "select", "select", "2" * 64)
    registry.start_stage_run(reads.id, digests)
    registry.succeed_stage_run(reads.id, {"model": (artifact("f"), "file:///f")})
    lineage = registry.lineage("f" * 64, "in")
    assert [edge.name for edge in lineage if edge.node == "select"] == [*expected, "model"]


def test_a_long_descent_is_one_question(registry, new_run):
    run_id, letters = new_run(), "0123456789abcdef"
    for i, (made_from, made) in enumerate(pairwise(letters)):
        stage(registry, run_id, f"stage-{i}", letters[i], inputs=made_from, outputs=made)
    asked = []
    sa.event.listen(registry._engine, "before_cursor_execute", lambda *a: asked.append(a[2]))

    back = registry.lineage("f" * 64, "in")

    assert [edge.depth for edge in back if edge.direction == "out"] == list(range(15))
    assert sum("SELECT" in statement for statement in asked) == 1


def test_an_artifact_is_found_by_the_beginning_of_its_digest(registry):
    registry.add_artifact(artifact("a"), "file:///a", {"rows": 3})
    registry.add_artifact(Artifact("aaaab" + "0" * 59, "model", 1, 1), "file:///b")

    assert registry.artifact("aaaaa").metadata == {"rows": 3}
    assert [a.kind for a in registry.artifacts(kind="model")] == ["model"]
    with pytest.raises(RegistryError, match="may mean several"):
        registry.artifact("aaaa")
    with pytest.raises(RegistryError, match="no artifact 'aa'"):
        registry.artifact("aa")

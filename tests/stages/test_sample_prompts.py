from pathlib import Path

import pytest

from caravan.data.io import read_rows, write_json, write_rows
from caravan.data.records import Conversation, Message
from caravan.recipe import SamplePromptsConfig
from caravan.stages import sample_prompts


def row(source: str, number: int, prompt: str | None = None) -> Conversation:
    return Conversation(
        id=f"{source}/{number}",
        messages=(
            Message(role="system", content="s"),
            Message(role="user", content=prompt or f"{source} asks {number}"),
            Message(role="assistant", content="reply"),
        ),
        source=source,
        skill="math" if source == "a" else "chat",
        license="MIT",
        verifier="gsm8k",
        ground_truth=str(number),
    )


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    rows = [row("a", n) for n in range(20)] + [row("b", n) for n in range(40)]
    write_rows(tmp_path / "dataset" / "rows.jsonl", rows)
    write_json(tmp_path / "dataset" / "card.json", {"sources": [{"name": "gone", "kept": 0}]})
    return tmp_path / "dataset"


def run_prompts(dataset: Path, context, **config: object) -> tuple[list[Conversation], dict]:
    mixed = make_mix(dataset, context)
    result = sample_prompts.run(
        SamplePromptsConfig.model_validate(config), {"dataset": dataset, "mix": mixed}, context
    )
    return list(read_rows(context.outputs["prompts"], Conversation)), dict(result.metrics)


def make_mix(dataset: Path, context) -> Path:
    """Half of `b` twice, nothing of `a`."""
    rows = [r for r in read_rows(dataset, Conversation) if r.source == "b"][::2]
    copies = [r.model_copy(update={"id": f"{r.id}~2"}) for r in rows]
    write_rows(context.root / "mixed" / "rows.jsonl", rows[:10] + copies)
    return context.root / "mixed"


def test_prompts_end_with_the_user_and_keep_what_checks_them(dataset: Path, make_context):
    rows, _ = run_prompts(dataset, make_context(), used_in_sft=3, unused_in_sft=3)
    for prompt in rows:
        assert [m.role for m in prompt.messages] == ["system", "user"]
        assert prompt.verifier == "gsm8k"
        assert prompt.ground_truth == prompt.id.split("/")[1]


def test_used_and_unused_are_told_apart_by_id_also_of_repeats(dataset: Path, make_context):
    rows, metrics = run_prompts(dataset, make_context(), used_in_sft=5, unused_in_sft=12)
    used = {r.id for r in rows if r.source == "b" and int(r.id.split("/")[1]) % 2 == 0}
    assert len(used) == 5
    unused = [r for r in rows if r.id not in used]
    assert [sum(r.source == s for r in unused) for s in ("a", "b")] == [6, 6]
    assert metrics["used_in_sft"] == 5


def test_more_than_there_is(dataset: Path, make_context, caplog):
    rows, metrics = run_prompts(dataset, make_context(), used_in_sft=100, unused_in_sft=0)
    assert len(rows) == 20
    assert metrics["used_in_sft/missing"] == 80
    assert caplog.messages == ["prompts used_in_sft: 100 asked for, 20 found"]


def test_components_draw_from_their_sources_and_no_prompt_twice(dataset: Path, make_context):
    components = [
        {"name": "reused", "drawn_from": "used_in_sft", "count": 4},
        {"name": "a-only", "sources": ["a"], "count": 20},
        {"name": "rest", "count": 100},
    ]
    rows, metrics = run_prompts(dataset, make_context(), components=components)
    assert len({r.id for r in rows}) == len(rows) == 60
    assert (metrics["reused"], metrics["a-only"], metrics["rest"]) == (4, 20, 36)


def test_prompt_that_sft_saw_elsewhere_is_not_unused(tmp_path: Path, make_context):
    rows = [row("a", 0, "same prompt"), row("b", 0, "Same  prompt"), row("a", 1)]
    write_rows(tmp_path / "d" / "rows.jsonl", rows)
    write_rows(tmp_path / "m" / "rows.jsonl", rows[1:2])
    context = make_context()
    sample_prompts.run(
        SamplePromptsConfig(unused_in_sft=5),
        {"dataset": tmp_path / "d", "mix": tmp_path / "m"},
        context,
    )
    drawn = read_rows(context.outputs["prompts"], Conversation)
    assert [r.id for r in drawn] == ["a/1"]

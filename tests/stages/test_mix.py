import json
from pathlib import Path

import pytest

from caravan.data.io import read_rows, write_json, write_rows
from caravan.data.records import Conversation, Message
from caravan.errors import DataError
from caravan.recipe import MixConfig
from caravan.stages import mix


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


def run_mix(dataset: Path, context, *components: dict) -> tuple[list[Conversation], dict]:
    config = MixConfig.model_validate({"dataset_mixer_list": components})
    mix.run(config, {"dataset": dataset}, context)
    report = json.loads((context.outputs["report"] / "mix.json").read_text())
    return list(read_rows(context.outputs["dataset"], Conversation)), report


def test_empty_list_takes_every_row(dataset: Path, make_context):
    rows, report = run_mix(dataset, make_context())
    assert sorted(r.id for r in rows) == sorted(r.id for r in read_rows(dataset, Conversation))
    assert [r.id for r in rows] != sorted(r.id for r in rows)
    assert report["by_skill"] == {"math": 20, "chat": 40}
    assert report["by_license"] == {"MIT": 60}


def test_counts_weights_and_what_is_left_out(dataset: Path, make_context):
    context = make_context()
    rows, report = run_mix(dataset, context, {"source": "a", "weight": 1.5})
    assert len({r.id for r in rows}) == len(rows) == 30
    assert {r.messages for r in rows if "~" in r.id} < {r.messages for r in rows if "~" not in r.id}
    assert report["by_source"] == {"a": 30}
    assert report["left_out"] == ["b", "gone"]


def test_source_that_lost_all_its_rows_is_missing_not_unknown(dataset: Path, make_context, caplog):
    components = [{"source": "a", "count": 30}, {"source": "b"}, {"source": "gone", "count": 5}]
    rows, report = run_mix(dataset, make_context(), *components)
    assert len(rows) == 60
    assert report["missing"] == {"a": 10, "gone": 5}
    assert caplog.messages == [
        "source a: 30 rows asked for, 20 left",
        "source gone: decontamination left none of its rows",
    ]


def test_unknown_source_gets_a_suggestion(dataset: Path, make_context):
    with pytest.raises(DataError, match="no source 'gome'; did you mean 'gone'"):
        run_mix(dataset, make_context(), {"source": "gome"})


def test_empty_mix_is_an_error(dataset: Path, make_context):
    with pytest.raises(DataError, match="mix is empty"):
        run_mix(dataset, make_context(), {"source": "gone"})


def test_same_seed_same_bytes(dataset: Path, make_context):
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        run_mix(dataset, make_context(name, seed=seed), {"source": "b", "count": 11})
    one, two, three = (
        (dataset.parent / name / "out/dataset/rows.jsonl").read_bytes()
        for name in ("one", "two", "three")
    )
    assert one == two
    assert one != three

import json
from pathlib import Path

import pytest

from caravan.data.io import read_rows
from caravan.data.records import Conversation
from caravan.errors import DataError, RecipeError
from caravan.recipe import FileSource, GeneratedSource, Source
from caravan.stages import curate
from caravan.stages.configs import CurateStageConfig as CurateConfig

TEXT = "please tell me everything you know about the long history of the old stone bridge"


def write(path: Path, *pairs: tuple[str, str], **extra: str) -> None:
    rows = [{"prompt": q, "completion": a, **extra} for q, a in pairs]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def source(name: str, path: str, **values: object) -> Source:
    origin = FileSource(paths=(path,))
    given = {"name": name, "origin": origin, "license": "MIT", "skill": "chat"} | values
    return Source.model_validate(given)


def rows_of(context) -> list[Conversation]:
    return list(read_rows(context.outputs["dataset"], Conversation))


def card_of(context) -> dict:
    return json.loads((context.outputs["card"] / "card.json").read_text())


def test_rows_get_id_source_skill_and_license(tmp_path: Path, make_context):
    write(tmp_path / "b.jsonl", ("three", "c"))
    write(tmp_path / "a.jsonl", ("one", "a"), ("two", "b"), ground_truth="7")
    context = make_context()
    config = CurateConfig(
        sources=(
            source("first", "*.jsonl", skill="math", verifier="gsm8k", rows=3),
            source("second", "a.jsonl"),
        ),
        drop_exact_duplicates=False,
        near_duplicate_threshold=None,
    )
    result = curate.run(config, {}, context)
    rows = rows_of(context)
    assert [(r.id, r.prompt[-1].content) for r in rows] == [
        ("first/0", "one"),
        ("first/1", "two"),
        ("first/2", "three"),
        ("second/0", "one"),
        ("second/1", "two"),
    ]
    assert [(r.skill, r.license, r.verifier) for r in rows[1:3]] == [
        ("math", "MIT", "gsm8k"),
        ("math", "MIT", None),  # no ground truth, nothing to verify
    ]
    assert result.metrics == {"rows": 5, "available": 5}


def test_card_counts_every_drop_and_duplicates_name_what_they_repeat(tmp_path, make_context):
    write(
        tmp_path / "a.jsonl",
        (TEXT, "It is old."),
        ("hi", "I am Claude, made elsewhere"),
        ("hi", "Claudette says hi"),
        ("empty", " "),
        (TEXT.upper(), "it is OLD."),
    )
    write(tmp_path / "b.jsonl", (TEXT, "It is, old!"), (TEXT + "!", "it is old."), ("new", "row"))
    context = make_context()
    config = CurateConfig(
        sources=(source("a", "a.jsonl", provenance="a | person"), source("b", "b.jsonl")),
        forbidden_phrases=("claude", "Open.AI"),
        near_duplicate_threshold=0.8,
    )
    curate.run(config, {}, context)
    assert [row.id for row in rows_of(context)] == ["a/0", "a/2", "b/0", "b/2"]
    first, second = card_of(context)["sources"]
    assert first["dropped"] == {"empty message": 1, "exact duplicate": 1, "forbidden phrase": 1}
    assert (first["available"], first["kept"]) == (5, 2)
    assert second["dropped"] == {"near duplicate": 1}
    assert card_of(context)["by_license"] == {"MIT": 4}
    found = [json.loads(line) for line in (context.outputs["card"] / "duplicates.jsonl").open()]
    assert [(d["id"], d["of"], d["similarity"]) for d in found] == [
        ("a/4", "a/0", 1.0),
        ("b/1", "a/0", 0.8333),
    ]
    card = (context.outputs["card"] / "card.md").read_text()
    assert "4 of 8 rows kept" in card
    assert "a \\| person" in card


def test_several_replies_to_one_prompt_stay_and_prompts_alone_are_compared(tmp_path, make_context):
    refusal = "I am sorry, but that is nothing that I can help you with at all today."
    other = "what does the new town hall look like from the other side of the river"
    write(
        tmp_path / "a.jsonl", (TEXT, "It is old."), (TEXT, "Nobody knows."), (TEXT, "it is  OLD."),
        (TEXT, refusal), (other, refusal), (TEXT + " ", refusal + " Ask"),
    )  # fmt: skip
    prompts = [TEXT, TEXT + " now", other]
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts))
    config = CurateConfig(
        sources=(source("a", "a.jsonl"), source("b", "b.jsonl")), near_duplicate_threshold=0.85
    )
    context = make_context()
    curate.run(config, {}, context)
    kept = ["a/0", "a/1", "a/3", "a/4", "b/0", "b/2"]
    assert [row.id for row in rows_of(context)] == kept
    found = [json.loads(line) for line in (context.outputs["card"] / "duplicates.jsonl").open()]
    assert [(d["id"], d["reason"], d["of"]) for d in found] == [
        ("a/2", "exact duplicate", "a/0"),
        ("a/5", "near duplicate", "a/3"),
        ("b/1", "near duplicate", "b/0"),
    ]


def test_what_is_not_read_not_answered_or_dropped_is_told_once_a_source(
    tmp_path, make_context, caplog
):
    write(tmp_path / "a.jsonl", ("one", "a"), ("one", "a"), ("two", "b"), verdict="good", empty="")
    (tmp_path / "b.jsonl").write_text('{"prompt": "q", "\\u001b[2J": "a"}\n')
    (tmp_path / "c.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two", "completion": "b"}\n')
    sources = tuple(source(name, f"{name}.jsonl") for name in "abc")
    context = make_context()
    result = curate.run(CurateConfig(sources=sources), {}, context)
    assert caplog.messages == [
        "source a: 3 rows; dropped: 1 exact duplicate; columns not read: verdict",
        "source b: 1 rows; none has a reply: prompts only, not trained on in SFT; "
        "columns not read: '\\x1b[2J'",
        "source c: 2 rows; dropped: 1 exact duplicate; 1 without a reply",
        "all sources: 6 rows; dropped: 2 exact duplicate; 2 without a reply; "
        "not all columns are read of a, b",
    ]
    assert result.metrics == {
        "rows": 4, "available": 6, "without_reply": 2, "dropped/exact duplicate": 2
    }  # fmt: skip
    assert [s["without_reply"] for s in card_of(context)["sources"]] == [0, 1, 1]
    assert "| a | verdict |" in (context.outputs["card"] / "card.md").read_text()


def test_what_stands_for_a_missing_value_is_told_and_stays(tmp_path, make_context, caplog):
    """Of a table written with pandas' `na_rep="nan"`; in another, None is the right answer."""
    (tmp_path / "a.csv").write_text("prompt,completion\none,a nan\ntwo,nan\nthree, NaN\n")
    write(tmp_path / "b.jsonl", ("What does print() return?", "None"))
    sources = (source("a", "a.csv"), source("b", "b.jsonl"))
    context = make_context()
    curate.run(CurateConfig(sources=sources), {}, context)
    of_a, of_b, of_all = caplog.messages
    assert "source a: 3 rows; 2 with a turn that is only nan, None or null (a/1, a/2): " in of_a
    assert "source b: 1 rows; 1 with a turn that is only nan, None or null (b/0): " in of_b
    assert "all sources: 4 rows; 3 with a turn that is only nan, None or null" in of_all
    card = card_of(context)
    assert card["kept"] == 4
    assert [s["may_be_missing"] for s in card["sources"]] == [2, 1]


def test_replies_that_are_labelled_bad_are_dropped_not_imitated(tmp_path, make_context):
    """KTO's format, as JSON and as a CSV has it; a class called 0 or false-friend is none."""
    rows = [
        {"prompt": "one", "completion": "good", "label": True},
        {"prompt": "one", "completion": "bad", "label": False},
        {"prompt": "two", "completion": "a class", "label": 0},
        {"prompt": "three", "completion": "a class", "label": "false-friend"},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "b.csv").write_text("prompt,completion,label\nfour,bad,False\nfive,good,True\n")
    context = make_context()
    sources = (source("a", "a.jsonl"), source("b", "b.csv"))
    result = curate.run(CurateConfig(sources=sources), {}, context)
    assert [row.id for row in rows_of(context)] == ["a/0", "a/2", "a/3", "b/1"]
    assert result.metrics["dropped/label false"] == 2
    assert "label" not in (context.outputs["dataset"] / "rows.jsonl").read_text()


def test_text_of_a_row_cannot_break_out_of_the_card(tmp_path: Path, make_context):
    write(tmp_path / "a.jsonl", ("```\n# Fake heading\n<script>", "````x"))
    context = make_context()
    curate.run(CurateConfig(sources=(source("a", "a.jsonl"),)), {}, context)
    card = (context.outputs["card"] / "card.md").read_text()
    assert card.endswith(
        "`````text\nuser: ```\n# Fake heading\n<script>\nassistant: ````x\n`````\n"
    )


def test_same_config_and_seed_give_the_same_bytes(tmp_path: Path, make_context):
    generated = Source(
        name="gen",
        origin=GeneratedSource(generator="math-book", count=20),
        license="Apache-2.0",
        skill="word-problems",
    )
    digests = []
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        context = make_context(name, seed=seed)
        curate.run(CurateConfig(sources=(generated,)), {}, context)
        files = sorted(p for out in context.outputs.values() for p in out.iterdir())
        digests.append([path.read_bytes() for path in files])
        assert {row.skill for row in rows_of(context)} == {"word-problems"}
        assert rows_of(context)[0].id == "gen/0"
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]


@pytest.mark.parametrize(
    ("license", "allowed", "refused"),
    [
        ("MIT", (), False),
        ("MIT", ("MIT",), False),
        ("MIT", ("Apache-2.0",), True),
        ("unknown", (), True),
        ("unknown", ("unknown",), False),
    ],
)
def test_licences(license: str, allowed: tuple[str, ...], refused: bool):
    config = CurateConfig(
        sources=(source("a", "x.jsonl", license=license),), allowed_licenses=allowed
    )
    if refused:
        with pytest.raises(RecipeError, match=f"source a has the licence '{license}'"):
            curate.check_licenses(config)
    else:
        curate.check_licenses(config)


def test_mistakes_name_source_file_and_row(tmp_path: Path, make_context):
    write(tmp_path / "a.jsonl", ("q", "a"))
    (tmp_path / "bad.jsonl").write_text('{"prompt": "q"}\n{"query": "q"}\n')
    (tmp_path / "shape.jsonl").write_text('{"conversations": 3}\n')
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "rows").mkdir()
    generator = GeneratedSource(generator="nothing", count=1)
    cases = [
        (source("a", "*.parquet"), "no file matches"),
        (source("a", "rows/"), r"rows is a directory; name the files in it, .*'rows/\*.jsonl'"),
        (source("a", "bad.jsonl"), r"source a: .*bad.jsonl, row 2: none of the columns"),
        (source("a", "shape.jsonl"), r"source a: .*shape.jsonl, row 1: column 'conversations' is"),
        (source("a", "a.jsonl", rows=2), "holds 1 rows, the recipe says 2"),
        (source("a", "empty.jsonl"), "holds no row"),
        (source("a", "", origin=generator), "no generator 'nothing'; there are: .*math-book"),
    ]
    for number, (bad, said) in enumerate(cases):
        with pytest.raises((DataError, RecipeError), match=said):
            curate.run(CurateConfig(sources=(bad,)), {}, make_context(f"case-{number}"))
        assert not list((tmp_path / f"case-{number}").rglob("*.jsonl*"))


def test_a_file_whose_name_is_also_a_pattern(tmp_path: Path):
    write(tmp_path / "br[1].jsonl", ("named", "a"))
    (made,) = curate.load(source("a", "br[1].jsonl"), 1, tmp_path)
    assert made.prompt[-1].content == "named"
    (tmp_path / "br[1].jsonl").unlink()
    write(tmp_path / "br1.jsonl", ("matched", "a"))
    (made,) = curate.load(source("a", "br[1].jsonl"), 1, tmp_path)
    assert made.prompt[-1].content == "matched"


def test_a_tilde_is_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "home" / "data").mkdir(parents=True)
    write(tmp_path / "home" / "data" / "a.jsonl", ("q", "a"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for path in ("~/data/a.jsonl", "~/data/*.jsonl"):
        assert len(list(curate.load(source("a", path), 1, tmp_path))) == 1


def test_verifier_that_only_its_authors_know(tmp_path: Path, make_context):
    row = {"messages": [{"role": "user", "content": "1 + 2?"}], "ground_truth": "3"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row | {"dataset": "gsm8l"}) + "\n")
    with pytest.raises(DataError, match="row 1: unknown verifier 'gsm8l'; did you mean 'gsm8k'"):
        list(curate.load(source("a", "a.jsonl"), 1, tmp_path))
    (made,) = curate.load(source("a", "a.jsonl"), 1, tmp_path, ("gsm8l",))
    assert made.verifier == "gsm8l"
    (made,) = curate.load(source("a", "a.jsonl", verifier="math"), 1, tmp_path)
    assert made.verifier == "math"

"""`caravan data inspect`: every token with whether it is trained on."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from caravan.data.io import write_rows
from caravan.data.records import Conversation, Message
from caravan.errors import CaravanError
from caravan.registry import Registry
from caravan.settings import load_settings
from caravan.store import open_store
from caravan.training.models import load_tokenizer
from caravan.training.tokenize import tokenize_conversations
from caravan_pipelines.cli.app import app
from tiny import conversations, write_inputs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CARAVAN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("FORCE_COLOR", raising=False)


def inspect(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["data", "inspect", *map(str, arguments)])
    if done.exception is not None:
        raise done.exception
    return done.output


def refusal(*arguments: object) -> str:
    with pytest.raises(CaravanError) as refused:
        inspect(*arguments)
    return str(refused.value)


def rows_of_table(output: str) -> list[tuple[int, bool, str]]:
    """Token id, trained, text."""
    cells = [line.strip().strip("│").split("│") for line in output.splitlines() if "│" in line]
    return [
        (int(id_), trained.strip() == "yes", text.strip()) for _, id_, trained, text in cells
    ]  # fmt: skip


def test_without_colours_a_table_shows_exactly_what_training_sees(inputs: dict[str, Path]) -> None:
    output = inspect(inputs["dataset"], "--model", inputs["model"], "--row", "t/5")
    tokenizer = load_tokenizer(inputs["model"])
    [row] = tokenize_conversations(conversations()[5:6], tokenizer, 64).rows
    found = rows_of_table(output)
    assert [id_ for id_, _, _ in found] == list(row.input_ids)
    assert [trained for _, trained, _ in found] == list(row.loss_mask)
    assert "".join(text for _, trained, text in found if trained) == (
        "The·camel·carries·5·<|endoftext|>"
    )
    assert f"t/5: {row.length} tokens, {sum(row.loss_mask)} trained on" in output


def test_in_colour_the_trained_tokens_and_no_others_are_on_green(
    inputs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    output = inspect(inputs["dataset"] / "rows.jsonl", "--model", inputs["model"], "--row", "t/5")
    green = re.findall(r"\x1b\[30;48;5;(?:40|157)m(.*?)\x1b\[0m", output)
    assert "".join(green) == "The·camel·carries·5·<|endoftext|>"
    plain = re.sub(r"\x1b\[[0-9;]*m", "", output)
    assert "<|user|>⏎\nCarry·5.⏎\n<|assistant|>⏎\nThe·camel" in plain


@pytest.mark.parametrize(
    ("name", "text", "row"),
    [
        ("chat.jsonl", '{"messages": [{"role": "user", "content": "q"}]}\n'
         '{"prompt": "Carry 5.", "response": "The camel carries 5 ", "mood": "x"}\n', "1"),
        ("own.csv", "id,question,answer,mood\nk7,Carry 5.,The camel carries 5 ,x\n", None),
        ("sharegpt.json", '[{"mood": 1, "conversations": [{"from": "human", "value": "Carry 5."},'
         ' {"from": "gpt", "value": "The camel carries 5 "}]}]', "0"),
    ],
)  # fmt: skip
def test_a_file_of_ones_own_is_read_as_a_source_is(
    inputs: dict[str, Path], tmp_path: Path, name: str, text: str, row: str | None
) -> None:
    (tmp_path / name).write_text(text)
    output = inspect(tmp_path / name, "--model", inputs["model"], *(["--row", row] if row else []))
    assert output.startswith(f"columns not read: mood\n{row or 'k7'}: ")
    assert "".join(text for _, trained, text in rows_of_table(output) if trained) == (
        "The·camel·carries·5·<|endoftext|>"
    )


@pytest.mark.parametrize(
    ("label", "said"), [("False", "label false: a run drops"), ("3", "columns not read: label")]
)
def test_a_reply_labelled_bad_is_said_to_be_dropped(
    inputs: dict[str, Path], tmp_path: Path, label: str, said: str
) -> None:
    (tmp_path / "kto.csv").write_text(f"prompt,completion,label\nq,a,{label}\n")
    assert inspect(tmp_path / "kto.csv", "--model", inputs["model"]).startswith(said)


def test_the_tokenizer_of_a_base_model_may_lack_a_pad_token(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    base = shutil.copytree(inputs["model"], tmp_path / "base")
    config = base / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"pad_token": None}))
    whole = inspect(inputs["dataset"], "--model", inputs["model"])
    assert inspect(inputs["dataset"], "--model", base) == whole


def test_pairs_of_ones_own_are_read_too(inputs: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "own.csv").write_text("prompt,chosen,rejected,mood\nCarry 5.,Yes,No,x\n")
    output = inspect(tmp_path / "own.csv", "--model", inputs["model"])
    assert output.startswith("columns not read: mood\n0:chosen: ")
    trained = [text for _, trained, text in rows_of_table(output) if trained]
    assert "".join(trained) == "Yes<|endoftext|>No<|endoftext|>"


def test_a_row_that_no_source_may_have_is_named_with_its_columns(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "odd.jsonl").write_text('{"body": "x"}\n')
    said = refusal(tmp_path / "odd.jsonl", "--model", inputs["model"])
    assert said.startswith(f"{tmp_path}/odd.jsonl, row 1: none of the columns messages, ")
    (tmp_path / "odd.txt").write_text("x")
    assert "cannot tell the format" in refusal(tmp_path / "odd.txt", "--model", inputs["model"])


def test_a_pair_shows_both_sides_and_what_a_cut_leaves(inputs: dict[str, Path]) -> None:
    whole = inspect(inputs["pairs"], "--model", inputs["model"], "--row", "t/7")
    assert "t/7:chosen: 38 tokens" in whole
    assert "t/7:rejected:" in whole
    cut = inspect(inputs["pairs"], "--model", inputs["model"], "--row", "t/7", "--max-length", 20)
    assert "t/7:chosen: 20 tokens, 0 trained on, 18 cut off" in cut
    assert "nothing is left to train on, so the row is dropped" in cut


def test_an_artifact_of_a_run_knows_its_tokenizer(inputs: dict[str, Path]) -> None:
    settings = load_settings()
    store = open_store(settings=settings)
    with Registry(settings.resolved_registry_url) as registry:
        run = registry.create_run({}, name="small", seed=1, recipe_digest="d" * 64)
        for node, kind in (("base", "model"), ("mix", "dataset")):
            artifact = store.put(inputs[kind], kind)
            opened = registry.open_stage_run(run, node, node, node)
            registry.start_stage_run(opened.id)
            made = {kind: (artifact, store.uri(artifact.digest))}
            registry.succeed_stage_run(opened.id, made)
    assert "t/0: " in inspect(f"{run}:mix/dataset")
    assert "t/3: " in inspect("latest:mix/dataset", "--row", "t/3")
    digest = artifact.digest
    assert "t/3: " in inspect(digest[:12], "--row", "t/3", "--model", inputs["model"])
    assert "give --model" in refusal(digest)
    assert "holds no rows" in refusal("latest:base/model")


def test_a_directory_and_a_file_without_rows_are_told_apart(tmp_path: Path) -> None:
    assert refusal(tmp_path, "--model", tmp_path) == (
        f"{tmp_path} has no rows.jsonl: it holds no rows to train on"
    )
    (tmp_path / "rows.jsonl").write_text("")
    assert "has no rows; give a file with at least one" in refusal(tmp_path, "--model", tmp_path)


def test_a_byte_order_mark_does_not_hide_that_rows_are_pairs(
    inputs: dict[str, Path], tmp_path: Path
) -> None:
    marked = tmp_path / "pairs.jsonl"
    marked.write_bytes(b"\xef\xbb\xbf" + (inputs["pairs"] / "rows.jsonl").read_bytes())
    assert "t/7:chosen: 38 tokens" in inspect(marked, "--model", inputs["model"], "--row", "t/7")


def test_what_is_missing_is_named_with_the_way_out(inputs: dict[str, Path]) -> None:
    rows, model = inputs["pairs"], inputs["model"]
    assert "give --model" in refusal(rows)
    assert "no row 't/77'; did you mean 't/7'?" in refusal(rows, "--model", model, "--row", "t/77")
    assert "nope: no such file, and no such artifact" in refusal("nope", "--model", model)
    assert "field 'messages'" in refusal(rows, "--model", model, "--stage", "sft")


def test_text_of_a_row_is_shown_and_never_obeyed(inputs: dict[str, Path], tmp_path: Path) -> None:
    text = "\x1b[2J\x07[bold]é\u202e\x00"
    row = Conversation(
        id="x", source="s", skill="s", license="MIT",
        messages=(Message(role="user", content="q"), Message(role="assistant", content=text)),
    )  # fmt: skip
    write_rows(tmp_path / "rows.jsonl", [row])
    output = inspect(tmp_path / "rows.jsonl", "--model", inputs["model"])
    assert not set("\x1b\x07\x00\u202e") & set(output)
    shown = "".join(text for _, trained, text in rows_of_table(output) if trained)
    assert "\\u{1b}[2J\\u{7}[bold]" in shown

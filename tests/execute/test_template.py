"""The chat template is recorded with what a stage makes, and checked in what it reads."""

import pytest

from caravan.data.template import TEMPLATE_HASH
from caravan.errors import DataError
from caravan.store import open_store


def test_every_output_says_its_template_in_the_store_and_in_the_registry(
    count, registry, settings, new_run
):
    outputs = count("base", new_run())
    store = open_store(settings=settings)
    for digest in outputs.values():
        assert (store.fetch(digest) / "chat_template.sha256").read_text().strip() == TEMPLATE_HASH
        assert registry.artifact(digest).metadata == {"chat_template_sha256": TEMPLATE_HASH}


def test_an_input_made_with_another_template_is_refused_before_the_stage_starts(
    count, settings, new_run, tmp_path, calls
):
    for name, file, content in (
        ("rows", "chat_template.sha256", "ab" * 32),
        ("model", "chat_template.jinja", "{{ messages }}"),
    ):
        directory = tmp_path / name
        directory.mkdir()
        (directory / file).write_text(content)
        digest = open_store(settings=settings).put(directory, "dataset").digest
        with pytest.raises(DataError) as refused:
            count("sft", new_run(), inputs={"dataset": digest})
        message = str(refused.value)
        assert f"sft: input dataset ({digest[:12]}): made with the chat template" in message
        assert TEMPLATE_HASH[:12] in message
        assert "run the stages that made it again" in message
    assert calls() == 0


def test_an_input_from_outside_says_nothing_and_is_taken(count, settings, new_run, tmp_path):
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "rows.jsonl").write_text("{}\n")
    digest = open_store(settings=settings).put(tmp_path / "rows", "dataset").digest
    count("sft", new_run(), inputs={"dataset": digest})


def test_what_models_replied_is_taken_whatever_they_were_asked_in(
    count, settings, new_run, tmp_path, calls
):
    for number, kind in enumerate(("completions", "report"), start=1):
        directory = tmp_path / kind
        directory.mkdir()
        (directory / "chat_template.sha256").write_text("ab" * 32)
        digest = open_store(settings=settings).put(directory, kind).digest
        count("sft", new_run(), inputs={"rows": digest})
        assert calls() == number

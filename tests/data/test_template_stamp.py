"""An artifact says which chat template it was made with, and another one is refused."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from caravan.data.records import Message
from caravan.data.template import TEMPLATE, TEMPLATE_HASH, encode_prompt
from caravan.data.template_stamp import check_template, recorded_hash, renders_as_ours, stamp
from caravan.errors import DataError
from caravan.inference import EngineError, asked_in, load_engine
from caravan.inference.transformers_engine import TransformersEngine
from caravan.training.importing import import_model
from caravan.training.models import load_policy, save_model
from foreign import CHATML, write_foreign
from tiny import write_inputs

PUBLISHED = (
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ '<|system|>\\n' + message['content'] + '\\n' }}{% elif message['role'] == 'user' %}"
    "{{ '<|user|>\\n' + message['content'] + '\\n' }}{% elif message['role'] == 'assistant' %}"
    "{% if not loop.last %}{{ '<|assistant|>\\n'  + message['content'] + eos_token + '\\n' }}"
    "{% else %}{{ '<|assistant|>\\n'  + message['content'] + eos_token }}{% endif %}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}{% endfor %}"
)
"""The Tülu template as the published models spell it."""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_inputs(tmp_path)["model"]


def give(model: Path, template: str | None) -> None:
    (model / "chat_template.jinja").unlink()
    if template is not None:
        (model / "chat_template.jinja").write_text(template)


def test_rows_carry_the_hash_in_a_file_and_models_their_template(tmp_path: Path) -> None:
    assert recorded_hash(tmp_path) is None
    check_template(tmp_path)
    stamp(tmp_path)
    assert (tmp_path / "chat_template.sha256").read_text() == TEMPLATE_HASH + "\n"
    check_template(tmp_path)

    model = tmp_path / "model"
    model.mkdir()
    (model / "chat_template.jinja").write_text(TEMPLATE)
    stamp(model)
    assert [path.name for path in model.iterdir()] == ["chat_template.jinja"]
    assert recorded_hash(model) == TEMPLATE_HASH


def test_another_template_is_refused_with_both_hashes_and_the_way_out(model: Path) -> None:
    give(model, CHATML)
    theirs = hashlib.sha256(CHATML.encode()).hexdigest()
    with pytest.raises(DataError, match=f"{theirs[:12]}.*{TEMPLATE_HASH[:12]}.*base_model"):
        load_policy(model)
    (model / "chat_template.jinja").unlink()
    config = model / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": CHATML}))
    with pytest.raises(DataError, match=theirs[:12]):
        load_policy(model)


def test_a_base_model_without_a_template_is_given_ours(model: Path, tmp_path: Path) -> None:
    give(model, None)
    load_policy(model)
    import_model(model, tmp_path / "imported")
    assert AutoTokenizer.from_pretrained(tmp_path / "imported").chat_template == TEMPLATE


def test_a_base_model_keeps_its_own_template_and_is_trained_in_ours(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    give(model, CHATML)
    theirs = hashlib.sha256(CHATML.encode()).hexdigest()
    with caplog.at_level(logging.WARNING):
        import_model(model, tmp_path / "imported")
    assert f"it is asked in its own chat template ({theirs[:12]})" in caplog.text
    assert asked_in(load_engine(tmp_path / "imported")) == theirs
    assert recorded_hash(tmp_path / "imported") == TEMPLATE_HASH

    policy = load_policy(tmp_path / "imported")
    save_model(policy.model, policy.tokenizer, tmp_path / "trained")
    assert asked_in(load_engine(tmp_path / "trained")) == TEMPLATE_HASH
    assert recorded_hash(tmp_path / "trained") == TEMPLATE_HASH


def test_a_base_model_of_another_template_may_be_given_ours(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    give(model, CHATML)
    with caplog.at_level(logging.WARNING):
        import_model(model, tmp_path / "imported", chat_template="tulu")
    assert "it has a chat template of its own" in caplog.text
    assert AutoTokenizer.from_pretrained(tmp_path / "imported").chat_template == TEMPLATE
    assert asked_in(load_engine(tmp_path / "imported")) == TEMPLATE_HASH
    give(model, "{% broken")
    import_model(model, tmp_path / "mended", chat_template="tulu")
    assert AutoTokenizer.from_pretrained(tmp_path / "mended").chat_template == TEMPLATE
    give(model, None)
    with pytest.raises(EngineError, match="the tokenizer has no chat template"):
        import_model(model, tmp_path / "refused", chat_template="model")


def test_a_base_model_that_is_given_a_pad_token_ends_its_replies_as_before(tmp_path: Path) -> None:
    """As Llama 3.1 Instruct, whose generation config has three end tokens."""
    source = write_foreign(tmp_path / "source", "llama3", pad=False)
    assert import_model(source, tmp_path / "imported") == 1
    before, after = load_engine(source), load_engine(tmp_path / "imported")
    assert isinstance(before, TransformersEngine)
    assert isinstance(after, TransformersEngine)
    assert len(before.ends) == 3
    assert after.ends == before.ends
    asked = [Message(role="user", content="hi")]
    assert after.format.encode(asked) == before.format.encode(asked)
    assert asked_in(after) == asked_in(before)


def test_a_model_that_will_not_be_tuned_must_know_ours(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    give(model, CHATML)
    with pytest.raises(DataError, match="made with the chat template"):
        import_model(model, tmp_path / "refused", will_be_tuned=False)
    give(model, PUBLISHED)  # another spelling of ours
    import_model(model, tmp_path / "taken", will_be_tuned=False)
    assert not caplog.text
    assert recorded_hash(tmp_path / "taken") == TEMPLATE_HASH


def test_a_tokenizer_that_adds_a_begin_token_keeps_it_when_it_is_asked(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_special_tokens({"bos_token": "<s>"})  # as Llama 3.1 does
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    tokenizer.save_pretrained(model)
    give(model, PUBLISHED)
    import_model(model, tmp_path / "imported", will_be_tuned=False)
    assert not caplog.text
    assert recorded_hash(tmp_path / "imported") == TEMPLATE_HASH

    policy = load_policy(tmp_path / "imported")
    save_model(policy.model, policy.tokenizer, tmp_path / "saved")
    for directory in (tmp_path / "imported", tmp_path / "saved"):
        served = AutoTokenizer.from_pretrained(directory)
        asked = served.apply_chat_template(
            [{"role": "user", "content": "hi"}], add_generation_prompt=True, return_dict=True
        )
        assert asked["input_ids"] == encode_prompt(served, [Message(role="user", content="hi")])
        assert asked["input_ids"][0] == served.bos_token_id
        check_template(directory)

    (tmp_path / "saved" / "chat_template.jinja").write_text("{{ bos_token }}" + CHATML)
    with pytest.raises(DataError, match="made with the chat template"):
        check_template(tmp_path / "saved")


def test_a_template_is_ours_if_it_renders_the_same(model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    for template, same in (
        (TEMPLATE, True),
        (PUBLISHED, True),
        (CHATML, False),
        (PUBLISHED.replace("eos_token + '\\n'", "eos_token"), False),
        ("{{ raise_exception('no') }}", False),
    ):
        tokenizer.chat_template = template
        assert renders_as_ours(tokenizer) is same

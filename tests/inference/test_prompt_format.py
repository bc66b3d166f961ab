"""Models of other origins are asked in their own chat templates, and end where they end."""

from __future__ import annotations

import hashlib
import json
import logging

import pytest
import torch
from transformers import AutoTokenizer

from caravan.data.records import Message
from caravan.data.template import BEGIN, TEMPLATE_HASH, encode_prompt
from caravan.inference import EngineError, asked_in, load_engine
from caravan.inference.chat import Chat
from caravan.recipe import Sampling, TransformersEngineConfig
from caravan.training.models import save_model
from foreign import ORIGINS, write_foreign

USER = Message(role="user", content="what is 3 + 4?")
TURNS = (
    USER,
    Message(role="assistant", content="7"),
    Message(role="user", content=" <|im_end|> and 5?"),
)
SYSTEM = Message(role="system", content="Be brief.")
GREEDY = Sampling(temperature=0.0, max_completion_length=24)
DRAWN = Sampling(temperature=1.0, max_completion_length=24)


def engine_of(directory, **changes):
    return load_engine(TransformersEngineConfig(model_name_or_path=str(directory), **changes))


def transformers_ids(tokenizer, prompt):
    plain = [message.model_dump() for message in prompt]
    return tokenizer.apply_chat_template(plain, tokenize=True, add_generation_prompt=True)[
        "input_ids"
    ]


@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize("chosen", [None, "model"])
def test_prompts_are_transformers_own(tmp_path, origin, chosen):
    directory = write_foreign(tmp_path / origin, origin)
    engine, tokenizer = (
        engine_of(directory, chat_template=chosen),
        AutoTokenizer.from_pretrained(directory),
    )
    asked = [(USER,), TURNS] + ([] if origin == "gemma" else [(SYSTEM, *TURNS)])
    assert engine.format.encode_all(asked) == [transformers_ids(tokenizer, p) for p in asked]
    for ids in engine.format.encode_all(asked):
        assert ids.count(tokenizer.bos_token_id) == (origin != "chatml")
    found = hashlib.sha256(ORIGINS[origin][0].removeprefix(BEGIN).encode()).hexdigest()
    assert asked_in(engine) == found != TEMPLATE_HASH


@pytest.mark.parametrize("origin", ORIGINS)
def test_replies_end_at_every_end_token_and_do_not_show_it(tmp_path, origin):
    directory = write_foreign(tmp_path / origin, origin)
    engine, tokenizer = engine_of(directory), AutoTokenizer.from_pretrained(directory)
    ends = set(engine.model.generation_config.eos_token_id)
    assert len(ends) == 3
    (group,) = engine.generate([(USER,)], DRAWN, n=200, seed=1)
    assert {reply.token_ids[-1] for reply in group if reply.finish_reason == "stop"} == ends
    for reply in group:
        stopped = reply.finish_reason == "stop"
        written = reply.token_ids[:-1] if stopped else reply.token_ids
        assert not ends & set(written)
        assert reply.text == tokenizer.decode(written, skip_special_tokens=True)

    (reply,) = engine.generate([TURNS], GREEDY, seed=1)[0]
    ids = transformers_ids(tokenizer, TURNS)
    theirs = engine.model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=24)
    assert reply.token_ids == tuple(theirs[0, len(ids) :].tolist())


def test_a_template_that_refuses_system_messages_gets_them_in_the_first_turn(tmp_path, caplog):
    directory = write_foreign(tmp_path, "gemma")
    with caplog.at_level(logging.INFO):
        engine = engine_of(directory)
    assert "asked in its own chat template" in caplog.text
    assert (
        "system messages, for which it has no place, go before the first user's message"
        in caplog.text
    )
    folded = (Message(role="user", content=f"Be brief.\n\n{USER.content}"), *TURNS[1:])
    assert engine.format.encode((SYSTEM, *TURNS)) == transformers_ids(engine.tokenizer, folded)

    silent = "{% for m in messages if m['role'] != 'system' %}{{ m['content'] }}{% endfor %}"
    (directory / "chat_template.jinja").write_text(silent)
    decoded = engine_of(directory).format.encode((SYSTEM, USER))
    assert engine.tokenizer.decode(decoded) == f"Be brief.\n\n{USER.content}"


def test_a_prompt_that_a_template_refuses_is_named(tmp_path):
    engine = engine_of(write_foreign(tmp_path, "gemma"))
    with pytest.raises(EngineError, match=rf"prompt 1: the chat template of {tmp_path} refuses it: "
                       "Conversation roles must alternate; leave it out"):  # fmt: skip
        engine.generate([(USER,), (USER, USER)], GREEDY, seed=1)


def test_a_template_that_cannot_be_rendered_is_refused_at_once(tmp_path):
    directory = write_foreign(tmp_path, "chatml")
    (directory / "chat_template.jinja").write_text("{% for m in messages %}")
    with pytest.raises(EngineError, match=rf"{tmp_path}: its chat template cannot be rendered"):
        engine_of(directory)
    (directory / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(EngineError, match="cannot be rendered: access to attribute '__class__'"):
        engine_of(directory)
    assert asked_in(engine_of(directory, chat_template="tulu")) == TEMPLATE_HASH


def test_the_tulu_template_may_be_asked_for_and_stands_in_where_there_is_none(tmp_path):
    directory = write_foreign(tmp_path, "llama3")
    asked = engine_of(directory, chat_template="tulu")
    assert asked.format.encode(TURNS) == encode_prompt(asked.tokenizer, TURNS)
    assert asked_in(asked) == TEMPLATE_HASH

    (directory / "chat_template.jinja").unlink()
    bare = engine_of(directory)
    assert bare.format.encode(TURNS) == asked.format.encode(TURNS)
    with pytest.raises(EngineError, match=rf"{tmp_path}: the tokenizer has no chat template, and "
                       "chat_template: model asks for its own"):  # fmt: skip
        engine_of(directory, chat_template="model")


def test_a_model_made_here_is_asked_as_it_was_trained_whatever_is_chosen(
    tmp_path, model, tokenizer
):
    save_model(model, tokenizer, tmp_path)
    for chosen in (None, "model", "tulu"):
        engine = engine_of(tmp_path, chat_template=chosen)
        assert engine.format.encode(TURNS) == encode_prompt(engine.tokenizer, TURNS)
        assert asked_in(engine) == TEMPLATE_HASH


def test_prompts_that_frame_what_others_wrote_are_framed_by_the_tulu_template(tmp_path):
    """The safety classifier's."""
    config = TransformersEngineConfig(model_name_or_path=str(write_foreign(tmp_path, "chatml")))
    engine = load_engine(config, special_tokens=True)
    assert asked_in(engine) == TEMPLATE_HASH
    assert engine.format.encode(TURNS) == encode_prompt(
        engine.tokenizer, TURNS, special_tokens=True
    )


def test_a_template_in_the_tokenizers_config_counts(tmp_path):
    directory = write_foreign(tmp_path, "chatml")
    template = (directory / "chat_template.jinja").read_text()
    (directory / "chat_template.jinja").unlink()
    config = directory / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"chat_template": template}))
    assert asked_in(engine_of(directory)) == hashlib.sha256(template.encode()).hexdigest()


def test_a_chat_shows_no_end_token_that_the_tokenizer_takes_for_text(tmp_path):
    chat = Chat.open(write_foreign(tmp_path, "llama3"), DRAWN, seed=3)
    for _ in range(12):
        chat.reset()
        pieces = []
        chat.say("hi", pieces.append)
        assert "~" not in "".join(pieces)

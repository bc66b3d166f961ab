"""Log-likelihoods of given replies, against a plain pass and lm-evaluation-harness."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from caravan.data.records import Message
from caravan.data.template import encode_prompt, encode_reply
from caravan.inference.likelihood import log_likelihoods
from caravan.inference.transformers_engine import TransformersEngine

PROMPTS = [(Message(role="user", content=text),) for text in ("why?", "What is 3 + 4, say", "hi")]
OPTIONS = [["7", "a longer answer, with a comma", "no"], ["7."], ["ab", "abc"]]


@pytest.fixture
def engine(model, tokenizer):
    return TransformersEngine(model, tokenizer, batch_size=4)


@pytest.fixture(params=["rotary", "absolute"])
def any_model(request, model, tokenizer):
    """Where positions are absolute, a shift by the padding would show."""
    if request.param == "rotary":
        return model
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=128,
        initializer_range=0.5, bos_token_id=None, eos_token_id=1,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def test_log_likelihoods_are_those_of_plain_passes_whatever_stands_beside_them(
    any_model, tokenizer
):
    model = any_model
    engine = TransformersEngine(model, tokenizer, batch_size=4)
    found = log_likelihoods(engine, PROMPTS, OPTIONS)
    for prompt, options, values in zip(PROMPTS, OPTIONS, found, strict=True):
        for option, value in zip(options, values, strict=True):
            before, reply = encode_prompt(tokenizer, prompt), encode_reply(tokenizer, option)
            with torch.no_grad():
                logits = model(torch.tensor([before + reply])).logits[0]
            logprobs = logits.log_softmax(-1)[len(before) - 1 : -1]
            alone = sum(float(logprobs[i, token]) for i, token in enumerate(reply))
            assert value == pytest.approx(alone, abs=1e-4)


def test_log_likelihoods_are_those_of_lm_evaluation_harness(engine, model, tokenizer):
    from lm_eval.models.huggingface import HFLM

    harness = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, device="cpu")
    # Tokens, as of texts it counts the prompt's last line break to the reply.
    requests = [
        (("", ""), encode_prompt(tokenizer, prompt), encode_reply(tokenizer, option))
        for prompt, options in zip(PROMPTS, OPTIONS, strict=True)
        for option in options
    ]
    theirs = [value for value, _ in harness._loglikelihood_tokens(requests, disable_tqdm=True)]
    ours = [value for values in log_likelihoods(engine, PROMPTS, OPTIONS) for value in values]
    assert ours == pytest.approx(theirs, abs=1e-4)


def test_a_prompt_that_does_not_fit_with_one_of_its_options_gets_none(engine):
    options = [OPTIONS[0], ["7" * 128], OPTIONS[2]]
    told = []
    found = log_likelihoods(engine, PROMPTS, options, progress=lambda *at: told.append(at))
    assert found[1] == []
    assert [len(values) for values in found] == [3, 0, 2]
    assert told[-1] == (2, 2)


def test_options_of_a_single_token_are_weighed_by_the_prompt_alone(engine):
    alone = log_likelihoods(engine, PROMPTS[:1], [["7", "8"]])[0]
    beside = log_likelihoods(engine, PROMPTS[:1], [["7", "8", "and more"]])[0]
    assert alone == pytest.approx(beside[:2], abs=1e-4)

"""Log-likelihoods of given replies, against a plain pass and lm-evaluation-harness."""

import pytest
import torch
from tokenizers.normalizers import Replace
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, Qwen3_5TextConfig

from caravan.data.records import Message
from caravan.data.template import encode_prompt, encode_reply
from caravan.inference import sampler, transformers_likelihood
from caravan.inference.engine import EngineError, naming
from caravan.inference.likelihood import encode_questions, log_likelihoods
from caravan.inference.transformers_engine import TransformersEngine

PROMPTS = [(Message(role="user", content=text),) for text in ("why?", "What is 3 + 4, say", "hi")]
OPTIONS = [["7", "a longer answer, with a comma", "no"], ["7."], ["ab", "abc"]]


@pytest.fixture
def engine(model, tokenizer):
    return TransformersEngine(model, tokenizer, batch_size=4)


@pytest.fixture(params=["rotary", "absolute", "linear"])
def any_model(request, model, tokenizer):
    """Where positions are absolute, a shift by the padding would show; linear attention has a
    state in the place of keys and values."""
    if request.param == "rotary":
        return model
    torch.manual_seed(0)
    if request.param == "linear":
        return AutoModelForCausalLM.from_config(
            Qwen3_5TextConfig(
                vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32,
                num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=2, head_dim=16,
                linear_num_key_heads=2, linear_num_value_heads=2, linear_key_head_dim=8,
                linear_value_head_dim=8, initializer_range=0.3, max_position_embeddings=128,
            )
        ).eval()  # fmt: skip
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=128,
        initializer_range=0.5, bos_token_id=None, eos_token_id=1,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


@pytest.mark.parametrize("batch_size", [1, 2, 4, 64])
def test_log_likelihoods_are_those_of_plain_passes_whatever_stands_beside_them(
    any_model, tokenizer, batch_size
):
    model = any_model
    engine = TransformersEngine(model, tokenizer, batch_size=batch_size)
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


@pytest.mark.parametrize(("options", "at_once"), [(2.5, 2), (0.1, 1), (99, 4)])
def test_no_more_options_are_weighed_at_once_than_have_room(engine, monkeypatch, options, at_once):
    """As on a GPU that has memory for so many."""
    expected = log_likelihoods(engine, PROMPTS, OPTIONS)
    questions = encode_questions(engine.format, PROMPTS, OPTIONS)
    longest = max(question.longest for question in questions)
    logits = len(OPTIONS[0][1]) * engine.model.config.vocab_size * 4
    of_one = longest * sampler.cache_bytes(engine.model) + 2 * logits
    monkeypatch.setattr(transformers_likelihood, "gpu_room", lambda device: options * of_one)
    rows = []
    engine.model.register_forward_hook(lambda *of_pass: rows.append(len(of_pass[2].logits)))
    assert log_likelihoods(engine, PROMPTS, OPTIONS) == [
        pytest.approx(values, abs=1e-4) for values in expected
    ]
    assert max(rows) == at_once


def test_an_option_without_a_token_is_an_error_that_names_its_question(engine):
    """It would be as likely as nothing else."""
    engine.tokenizer.backend_tokenizer.normalizer = Replace("_", "")
    options = [OPTIONS[0], ["7.", "__"], OPTIONS[2]]
    message = "mine/b: .* has no token for the option '__'; leave it out"
    with pytest.raises(EngineError, match=message), naming(["mine/a", "mine/b", "mine/c"]):
        encode_questions(engine.format, PROMPTS, options)


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_what_is_no_probability_is_an_error(engine, broken):
    with torch.no_grad():
        engine.model.lm_head.weight[7] = broken
    with pytest.raises(EngineError, match="are not finite: its weights are broken"):
        log_likelihoods(engine, PROMPTS, OPTIONS)

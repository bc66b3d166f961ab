"""The sampler against transformers' own generate and full forward passes."""

import pytest
import torch
from scipy import stats
from transformers import (
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

from caravan.inference import sampler
from caravan.inference.engine import EngineError
from caravan.inference.sampler import generate_tokens

PROMPTS = [[5, 6, 7], [9], [11, 12, 13, 14, 15, 16, 17, 18, 19], [20, 21, 22, 23]]
EOS, PAD = 1, 0
OFTEN = [1, *range(10, 17)]  # many end tokens, so that rows end at different times


def sample(model, prompts=PROMPTS, seed=0, **changes):
    arguments = {"max_new_tokens": 24, "eos_token_id": EOS, "pad_token_id": PAD} | changes
    return generate_tokens(
        model, prompts, generator=torch.Generator().manual_seed(seed), **arguments
    )


def full_forward_logprobs(model, prompt, ids, temperature):
    logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
    chosen = (logits / temperature).log_softmax(-1).gather(-1, torch.tensor(ids)[:, None])
    return chosen[:, 0].tolist()


@pytest.mark.parametrize("ends", [EOS, OFTEN])
def test_greedy_output_is_that_of_transformers_generate(model, ends):
    for prompt, (reply,) in zip(
        PROMPTS, sample(model, temperature=0, eos_token_id=ends), strict=True
    ):
        expected = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt)),
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=ends,
            pad_token_id=PAD,
        )
        assert list(reply.token_ids) == expected[0, len(prompt) :].tolist()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_a_full_forward_pass(model, temperature):
    groups = sample(model, n=5, temperature=temperature, eos_token_id=OFTEN)
    for prompt, group in zip(PROMPTS, groups, strict=True):
        assert len(group) == 5
        for reply in group:
            expected = full_forward_logprobs(model, prompt, list(reply.token_ids), temperature)
            assert list(reply.logprobs) == pytest.approx(expected, abs=2e-5)


def test_a_reply_depends_neither_on_padding_nor_on_the_rows_beside_it(model):
    together = sample(model, n=3, eos_token_id=OFTEN)
    in_small_batches = sample(model, n=3, eos_token_id=OFTEN, batch_size=3)
    for group, other in zip(together, in_small_batches, strict=True):
        for reply, same in zip(group, other, strict=True):
            assert reply.token_ids == same.token_ids
            assert reply.logprobs == pytest.approx(same.logprobs, abs=2e-5)


def test_the_seed_decides(model):
    assert sample(model, n=4) == sample(model, n=4)
    assert sample(model, n=4) != sample(model, n=4, seed=1)


def test_the_end_token_is_kept_and_the_finish_reason_tells_it(model):
    replies = [r for group in sample(model, n=20, eos_token_id=OFTEN) for r in group]
    stopped = [r for r in replies if r.finish_reason == "stop"]
    assert 10 < len(stopped) < len(replies)
    for reply in replies:
        assert (reply.token_ids[-1] in OFTEN) == (reply.finish_reason == "stop")
        assert not set(reply.token_ids[:-1]) & set(OFTEN)
        assert len(reply.token_ids) == 24 or reply.finish_reason == "stop"


def test_samples_follow_the_models_distribution(model):
    """Chi-square over the first token; tokens expected less than five times share a bin."""
    count, temperature = 4000, 1.3
    (group,) = sample(
        model, PROMPTS[:1], n=count, temperature=temperature, max_new_tokens=1, seed=3
    )
    probs = (model(torch.tensor([PROMPTS[0]])).logits[0, -1] / temperature).softmax(-1)
    observed = torch.bincount(
        torch.tensor([r.token_ids[0] for r in group]), minlength=len(probs)
    ).double()
    expected = probs.double() * count
    common = expected >= 5
    counts = torch.cat([observed[common], observed[~common].sum()[None]])
    theory = torch.cat([expected[common], expected[~common].sum()[None]])
    assert common.sum() > 5
    result = stats.chisquare(counts.detach(), (theory * count / theory.sum()).detach())
    assert result.pvalue > 0.01


def test_top_p_draws_only_from_the_nucleus(model):
    probs = model(torch.tensor([PROMPTS[0]])).logits[0, -1].softmax(-1)
    ordered, order = probs.sort(descending=True)
    size = int((ordered.cumsum(-1) < 0.5).sum()) + 1
    (group,) = sample(model, PROMPTS[:1], n=500, top_p=0.5, max_new_tokens=1)
    assert {r.token_ids[0] for r in group} == set(order[:size].tolist())
    assert group[0].logprobs[0] == pytest.approx(
        probs[group[0].token_ids[0]].log().item(), abs=1e-5
    )


def test_a_model_with_a_sliding_window_keeps_it():
    torch.manual_seed(1)
    config = MistralConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, sliding_window=6, initializer_range=0.5,
    )  # fmt: skip
    model = MistralForCausalLM(config).eval()
    for prompt, (reply,) in zip(PROMPTS, sample(model, eos_token_id=49), strict=True):
        expected = full_forward_logprobs(model, prompt, list(reply.token_ids), 1.0)
        assert list(reply.logprobs) == pytest.approx(expected, abs=2e-5)


def test_a_model_with_linear_attention_keeps_the_states_of_the_rows_that_go_on():
    torch.manual_seed(1)
    config = Qwen3NextConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_experts=2,
        num_attention_heads=2, num_key_value_heads=2, head_dim=16, linear_num_key_heads=2,
        linear_num_value_heads=2, linear_key_head_dim=8, linear_value_head_dim=8,
        moe_intermediate_size=16, shared_expert_intermediate_size=16, num_experts_per_tok=1,
        initializer_range=0.5,
    )  # fmt: skip
    model = Qwen3NextForCausalLM(config).eval()
    for prompt, replies in zip(PROMPTS, sample(model, eos_token_id=OFTEN, n=3), strict=True):
        for reply in replies:
            expected = full_forward_logprobs(model, prompt, list(reply.token_ids), 1.0)
            assert list(reply.logprobs) == pytest.approx(expected, abs=2e-4)


def test_a_model_that_keeps_no_keys_and_values_is_refused():
    config = MambaConfig(vocab_size=50, hidden_size=32, num_hidden_layers=1, state_size=4)
    with pytest.raises(EngineError, match="MambaForCausalLM keeps no keys and values"):
        sample(MambaForCausalLM(config))


def test_a_reply_ends_where_the_model_has_no_more_positions(model):
    long = [7] * 125
    (full,), (short,) = sample(model, [long, [8]], eos_token_id=EOS, temperature=0)
    assert (len(full.token_ids), full.finish_reason) == (3, "length")
    assert len(short.token_ids) == 24
    with pytest.raises(ValueError, match="prompt 1 has 128 tokens, which leaves no room"):
        sample(model, [[8], [7] * 128])


@pytest.mark.parametrize(("rows", "calls"), [(3.5, [2, 4, 6, 8]), (0.1, [2, 4, 6, 8]), (8, [8])])
def test_no_more_rows_are_decoded_at_once_than_have_room(model, monkeypatch, rows, calls):
    """As on a GPU of which so many rows' keys and values are left."""
    expected, seen = sample(model, n=2), []
    config = model.config
    of_token = 2 * 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    room = rows * of_token * (9 + 24 + 32)  # the longest prompt, its reply, what a buffer spares
    monkeypatch.setattr(sampler, "gpu_room", lambda device: room)
    found = sample(model, n=2, progress=lambda done, total: seen.append(done))
    assert seen == calls
    assert [[r.token_ids for r in g] for g in found] == [[r.token_ids for r in g] for g in expected]


def test_progress_counts_continuations(model):
    seen = []
    sample(model, n=2, batch_size=4, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(4, 8), (8, 8)]
    assert generate_tokens(model, [], max_new_tokens=1, eos_token_id=1, pad_token_id=0) == []

"""Rows packed side by side give the losses and gradients that each of them gives alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from caravan.training import attention
from caravan.training.attention import packed_attention
from caravan.training.batching import TokenRow, collate
from caravan.training.logprobs import token_logprobs
from caravan.training.packing import WHOLE_TOKENS, lay_out
from caravan.training.pairs import pair_passes, shared_tokens
from caravan.training.rewards import end_token_rewards
from caravan.training.tokenize import PairRow


def rows_of(*sizes: tuple[int, int], begin: dict[int, list[int]] | None = None) -> list[TokenRow]:
    """Rows of (tokens, supervised tokens), of which some begin alike."""
    generator = torch.Generator().manual_seed(4)
    rows = []
    for i, (tokens, supervised) in enumerate(sizes):
        first = (begin or {}).get(i, [])
        more = torch.randint(20, 320, (tokens - len(first),), generator=generator).tolist()
        mask = [False] * (tokens - supervised) + [True] * supervised
        rows.append(TokenRow(str(i), first + more, mask))
    return rows


def gradients(model):
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return found


def alone(model, rows):
    """Log-probabilities of each row, unpadded, by the plain model; weighed differently."""
    values = []
    for row in rows:
        ids = torch.tensor([row.input_ids])
        every = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]).squeeze(1)
        values.append(every[torch.tensor(row.loss_mask[1:])])
    return torch.cat(values)


def weighed(values):
    (values * torch.linspace(-1, 1, len(values))).sum().backward()


@pytest.mark.parametrize("heads", [2, 4])
@pytest.mark.parametrize("max_keys", [0, 512])
def test_packed_rows_give_the_losses_and_gradients_of_unpacked_ones(heads, max_keys, monkeypatch):
    """With PyTorch's attention and with ours; with as many heads of keys as of queries, and less"""
    monkeypatch.setattr(attention, "MAX_KEYS", max_keys)
    torch.manual_seed(0)
    model = llama(heads)
    rows = rows_of((40, 30), (5, 2), (39, 1), (33, 20), (6, 5), (17, 16))

    expected = alone(model, rows)
    weighed(expected)
    plain = gradients(model)
    batch = collate(rows, 0)
    found = token_logprobs(model, batch.input_ids, batch.loss_mask, batch.layout)
    weighed(found)

    assert batch.layout.tokens == whole(sum(row.length for row in rows))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradients(model), plain, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("heads", [2, 4])
@pytest.mark.parametrize("max_keys", [0, 512])
def test_a_prompt_computed_once_gives_the_gradients_of_one_computed_twice(
    heads, max_keys, monkeypatch
):
    monkeypatch.setattr(attention, "MAX_KEYS", max_keys)
    torch.manual_seed(0)
    model = llama(heads)
    prompts = {0: [5, 6, 7, 8], 1: [9], 3: [5, 6, 7, 8], 4: [9]}
    rows = rows_of((24, 20), (30, 29), (9, 9), (21, 17), (5, 4), (7, 6), begin=prompts)

    expected = alone(model, rows)
    weighed(expected)
    plain = gradients(model)
    batch = collate(rows, 0, [4, 1, 0])
    found = token_logprobs(model, batch.input_ids, batch.loss_mask, batch.layout)
    weighed(found)

    assert batch.layout.tokens == whole(sum(row.length for row in rows) - 5)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradients(model), plain, atol=1e-5, rtol=1e-4)


def test_a_pass_of_pairs_computes_what_its_sides_begin_with_once(policy):
    prompt = [5, 6, 7, 8, 9]
    chosen, rejected = rows_of((20, 15), (12, 7), begin={0: prompt, 1: prompt})
    rows = [PairRow("a", chosen, rejected)]
    (batch,) = pair_passes(rows, torch.empty(0), 1000, 0, [0])

    assert batch.sides.layout.tokens == whole(20 + 12 - 5)
    rewards = end_token_rewards(
        reward_model(policy.model), batch.sides.input_ids, batch.sides.lengths, batch.sides.layout
    )
    each = [
        end_token_rewards(
            reward_model(policy.model), torch.tensor([row.input_ids]), torch.tensor([row.length])
        )
        for row in (chosen, rejected)
    ]
    torch.testing.assert_close(rewards, torch.cat(each), atol=1e-5, rtol=1e-5)


def test_the_shorter_side_of_a_pair_keeps_a_token_of_its_own():
    longer, shorter = (
        TokenRow("a", [5, 6, 7, 1], [False, True, True, True]),
        TokenRow("b", [5, 6], [False, True]),
    )
    assert shared_tokens(PairRow("p", longer, shorter)) == 1
    assert shared_tokens(PairRow("p", shorter, longer)) == 2


def test_models_with_other_attention_are_padded_instead():
    torch.manual_seed(0)
    shape = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    model = MistralForCausalLM(
        MistralConfig(
            **shape, num_attention_heads=2, num_key_value_heads=2, sliding_window=4,
            attn_implementation="sdpa",
        )
    )  # fmt: skip
    rows = rows_of((9, 8), (20, 19))
    batch = collate(rows, 0)
    found = token_logprobs(model, batch.input_ids, batch.loss_mask, batch.layout)
    torch.testing.assert_close(found, alone(model, rows), atol=1e-5, rtol=1e-5)


def test_a_model_that_was_trained_packed_still_generates_as_before(policy):
    ids = torch.tensor([[0, 0, 5, 6, 7], [30, 31, 32, 33, 34]])
    mask = ids != 0
    before = policy.model(ids, attention_mask=mask).logits
    batch = collate(rows_of((9, 8), (4, 3)), 0)
    token_logprobs(policy.model, batch.input_ids, batch.loss_mask, batch.layout)
    torch.testing.assert_close(policy.model(ids, attention_mask=mask).logits, before)


def test_checkpointed_layers_give_the_same_gradients(policy):
    batch = collate(rows_of((9, 8), (20, 19), (4, 3)), 0)
    policy.model.train()
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            policy.model.gradient_checkpointing_enable({"use_reentrant": False})
        weighed(token_logprobs(policy.model, batch.input_ids, batch.loss_mask, batch.layout))
        found.append(gradients(policy.model))
    torch.testing.assert_close(found[1], found[0])


def test_in_bfloat16_packed_rows_are_as_close_to_float32_as_padded_ones(policy):
    batch = collate(rows_of((40, 30), (5, 2), (33, 20)), 0)

    def run(layout, bf16):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            values = token_logprobs(policy.model, batch.input_ids, batch.loss_mask, layout)
        weighed(values)
        return gradients(policy.model)

    exact = run(None, False)
    assert (run(batch.layout, True) - exact).norm() < 1.5 * (run(None, True) - exact).norm()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(0, 30)),
        min_size=1,
        max_size=6,
    )
)
def test_every_token_sees_its_own_row_up_to_itself_and_nothing_else(pairs):
    """Each value names its token and all weigh the same, so the output names what was seen."""
    prompts = [min(shared, a - 1, b - 1) for a, b, shared in pairs]
    lengths = [a for a, _, _ in pairs] + [b for _, b, _ in pairs]
    layout = lay_out(lengths, max(lengths), prompts)
    n = layout.tokens
    zeros = torch.zeros(n, 2, n)
    seen = packed_attention(zeros, zeros, torch.eye(n)[:, None].repeat(1, 2, 1), layout, 1.0)

    assert n == whole(sum(lengths) - sum(prompts))
    for row, length in enumerate(lengths):
        places = layout.found[row, :length]
        assert layout.positions[places].tolist() == list(range(length))
        for last in range(length):
            of_token = seen[places[last], 1].nonzero().flatten().tolist()
            assert of_token == sorted(places[: last + 1].tolist())


def llama(heads: int) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=heads, num_key_value_heads=2, initializer_range=0.2,
            attn_implementation="sdpa",
        )
    )  # fmt: skip


def reward_model(model):
    from caravan.training.models import reward_model_from

    torch.manual_seed(1)
    return reward_model_from(model, 0)


def whole(tokens: int) -> int:
    return -(-tokens // WHOLE_TOKENS) * WHOLE_TOKENS


def test_under_autocast_the_kernel_is_chosen_for_bfloat16(policy, monkeypatch):
    """Rotary embeddings come out in float32, which no flash kernel takes."""
    seen = []

    def grouped(query, key, value, layout, scale):
        seen.append({query.dtype, key.dtype, value.dtype})
        return value

    monkeypatch.setattr(attention, "_grouped_attention", grouped)
    batch = collate([TokenRow("a", [5, 6, 7, 8], [False, True, True, True])], 0)
    with torch.autocast("cpu", torch.bfloat16):
        token_logprobs(policy.model, batch.input_ids, batch.loss_mask, batch.layout)
    assert seen == [{torch.bfloat16}] * 2

import pytest
import torch

from caravan.training import kernels, logprobs, output_head
from caravan.training.batching import TokenRow, collate


def reference(model, ids, mask, temperature=1.0):
    """Log-probabilities through the whole logits, in the plainest way."""
    logits = model(ids).logits[:, :-1].float() / temperature
    every = torch.log_softmax(logits, -1).gather(2, ids[:, 1:, None]).squeeze(2)
    return every[mask[:, 1:]]


def gradients(model):
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    return found


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_chunked_log_probabilities_and_gradients_equal_those_of_the_whole_logits(
    policy, ids, monkeypatch, temperature
):
    monkeypatch.setattr(output_head, "LOGITS_PER_CHUNK", 320 * 4)  # four tokens at a time
    mask = torch.rand(ids.shape, generator=torch.Generator().manual_seed(1)) > 0.4
    got = logprobs.token_logprobs(policy.model, ids, mask, temperature=temperature)
    weights = torch.arange(len(got)) / len(got)
    (got * weights).sum().backward()
    ours = gradients(policy.model)

    expected = reference(policy.model, ids, mask, temperature)
    (expected * weights).sum().backward()
    theirs = gradients(policy.model)

    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, atol=1e-5, rtol=1e-4)


def test_padding_on_the_right_changes_nothing(policy, ids):
    rows = [
        TokenRow(str(n), ids[0, :n].tolist(), [False] * 3 + [True] * (n - 3)) for n in (5, 16, 9)
    ]
    batch = collate(rows, policy.tokenizer.pad_token_id)
    together = logprobs.token_logprobs(policy.model, batch.input_ids, batch.loss_mask)
    sums = logprobs.sum_rows(together, batch.loss_mask)
    for row, total in zip(rows, sums, strict=True):
        one = torch.tensor([row.input_ids])
        alone = logprobs.token_logprobs(policy.model, one, torch.tensor([row.loss_mask]))
        torch.testing.assert_close(alone.sum(), total, atol=1e-5, rtol=1e-5)
        assert len(alone) == len(row.input_ids) - 3


def test_values_come_back_in_their_places():
    mask = torch.tensor([[False, True, False], [True, True, True]])
    placed = logprobs.to_rows(torch.tensor([1.0, 2.0, 3.0]), mask)
    assert placed.tolist() == [[1.0, 0.0], [2.0, 3.0]]  # nothing comes before the first token
    assert logprobs.sum_rows(torch.tensor([1.0, 2.0, 3.0]), mask).tolist() == [1.0, 5.0]


def test_without_a_c_compiler_no_kernels_are_made_and_it_is_said_once(monkeypatch, caplog):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("CC", "")
    kernels.can_compile.cache_clear()
    assert not kernels.can_compile()
    assert not kernels.can_compile()
    assert caplog.text.count("gcc or clang") == 1
    kernels.can_compile.cache_clear()


def test_the_formulas_that_a_gpu_compiles_are_those_of_the_cpu():
    torch.manual_seed(0)
    logits, scale = torch.randn(7, 33), torch.randn(7)
    labels = torch.randint(0, 33, (7,))
    expected = output_head._pick_logits(logits.clone(), labels, 0.7)
    found = kernels.pick_logits(logits, labels, 0.7)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        kernels.logits_gradient(logits, labels, found[1], scale, 0.7),
        output_head._logits_gradient(logits.clone(), labels, found[1], scale, 0.7),
    )


@pytest.mark.parametrize("frozen", [None, "hidden", "head"])
def test_what_is_frozen_gets_no_gradient_and_the_other_keeps_its_own(frozen):
    torch.manual_seed(0)
    hidden, head = torch.randn(5, 8), torch.randn(40, 8)
    wanted = [
        t.requires_grad_() for n, t in {"hidden": hidden, "head": head}.items() if n != frozen
    ]
    tokens = torch.randint(0, 40, (5,))
    expected = torch.autograd.grad(
        torch.nn.functional.cross_entropy(hidden @ head.T, tokens, reduction="sum"), wanted
    )
    for loss in (
        output_head.linear_cross_entropy(hidden, head, tokens),
        -output_head.linear_logprobs(hidden, head, tokens).sum(),
    ):
        torch.testing.assert_close(torch.autograd.grad(loss, wanted), expected)

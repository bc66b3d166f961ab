"""Log-likelihoods of given replies under a causal language model held in memory.

The options of a prompt share its keys and values, so that a long prompt, as one with examples, is
computed once and not with each option.

Shapes: Q questions of one batch, P tokens of the longest prompt, R options, T tokens of the longest
option, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from caravan.inference.likelihood import Progress, Question
from caravan.inference.sampler import cache_bytes, cache_of, gpu_room


@torch.inference_mode()
def weigh_questions(
    model: PreTrainedModel,
    questions: Sequence[Question],
    batch_size: int,
    progress: Progress | None,
) -> list[list[float]]:
    """Of each option of each question, the sum of its tokens' log-probabilities, in nats.

    Args:
        batch_size: options weighed at once; fewer where a GPU has no room for them.
    """
    at_once = _options_at_once(model, questions, batch_size)
    found: list[list[float]] = [[] for _ in questions]
    done = 0
    for batch in _batches(questions, at_once):
        values = iter(_of_batch(model, [part for _, part in batch]))
        for i, part in batch:
            found[i] += [next(values) for _ in part.options]
            done += len(found[i]) == len(questions[i].options)
        if progress is not None:
            progress(done, len(questions))
    return found


def _options_at_once(model: PreTrainedModel, questions: Sequence[Question], batch_size: int) -> int:
    room = gpu_room(model.device)
    if room is None or not questions:
        return batch_size
    keys_and_values = max(q.longest for q in questions) * cache_bytes(model)
    logits = max(len(option) for q in questions for option in q.options)
    logits *= model.config.vocab_size * model.dtype.itemsize
    return max(1, min(batch_size, int(room / (keys_and_values + 2 * logits))))  # and their copy


def _batches(questions: Sequence[Question], at_once: int) -> Iterator[list[tuple[int, Question]]]:
    """Questions of like length together, the longest first, each with its number. One with more
    than `at_once` options is in several batches, with a part of them in each."""
    batch: list[tuple[int, Question]] = []
    options = 0
    for i in sorted(range(len(questions)), key=lambda i: -questions[i].longest):
        prompt, own = questions[i]
        for part in (own[start : start + at_once] for start in range(0, len(own), at_once)):
            if batch and options + len(part) > at_once:
                yield batch
                batch, options = [], 0
            batch.append((i, Question(prompt, part)))
            options += len(part)
    if batch:
        yield batch


def _of_batch(model: PreTrainedModel, questions: Sequence[Question]) -> list[float]:
    """[R] of the options of all questions, in their order."""
    device = model.device
    prompts, there = _padded([question.prompt for question in questions], left=True)
    lengths = there.sum(1)
    asked = model(
        input_ids=prompts.to(device),
        attention_mask=there.to(device),
        position_ids=(there.cumsum(1) - 1).clamp(min=0).to(device),
        past_key_values=DynamicCache(config=model.config),
        use_cache=True,
        logits_to_keep=1,
    )
    owners = torch.tensor([i for i, q in enumerate(questions) for _ in q.options])
    options, written = _padded(list(chain.from_iterable(q.options for q in questions)), left=False)
    logits = asked.logits[owners.to(device)]  # [R, 1, V], before the first token of each
    rest = logits[:, :0]
    if options.shape[1] > 1:
        # Unlike batch_select_indices, it also knows the states of linear attention.
        cache = cache_of(asked, model)
        cache.reorder_cache(owners.to(device))
        before = options[:, :-1]  # nothing comes after the last
        rest = model(
            input_ids=before.to(device),
            attention_mask=torch.cat([there[owners], torch.ones_like(before)], 1).to(device),
            position_ids=(lengths[owners, None] + torch.arange(before.shape[1])).to(device),
            past_key_values=cache,
            use_cache=True,
        ).logits  # [R, T - 1, V]
    sums = [
        torch.cat(of_option).float().log_softmax(-1).gather(1, tokens[:, None]).squeeze(1)
        for *of_option, tokens in zip(logits, rest, options.to(device), strict=True)
    ]
    return [float(s) for s in (torch.stack(sums) * written.to(device)).sum(1)]


def _padded(rows: Sequence[Sequence[int]], *, left: bool) -> tuple[Tensor, Tensor]:
    """Token ids padded with 0, and 1 where they are no padding."""
    width = max(map(len, rows))
    ids, there = torch.zeros(2, len(rows), width, dtype=torch.long)
    for row, tokens in enumerate(rows):
        place = slice(width - len(tokens), None) if left else slice(len(tokens))
        ids[row, place] = torch.tensor(tokens)
        there[row, place] = 1
    return ids, there

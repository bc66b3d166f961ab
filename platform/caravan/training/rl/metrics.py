"""What a step of reinforcement learning reports, summed up over its passes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from statistics import fmean, pstdev

import torch
from torch import Tensor

from caravan.training.rl.advantages import kl_k1, kl_k3
from caravan.training.rl.forward import Pass, gather
from caravan.training.rl.rollout import Outcome, RolloutBatch

Sums = defaultdict[str, float]
_MAXIMA = ("mismatch/logprob_abs_max",)
"""Not summed up: the largest counts."""


def rollout_metrics(rollouts: RolloutBatch) -> dict[str, float]:
    """What can be said of a rollout batch without the models.

    Rewards are over the completions whose reward is known; scores of the reward model, and lengths
    in tokens, over all.
    """
    known = rollouts.rewards[rollouts.counts]
    lengths = rollouts.lengths.float()
    metrics = {
        "reward": float(known.mean()),
        "reward_std": float(known.std(correction=0)),
        "completions/mean_length": float(lengths.mean()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": 1.0 - int(rollouts.ended.sum()) / len(rollouts.ended),
        "verifier/failures": float((~rollouts.counts).sum()),
    }
    by_verifier: dict[str, list[tuple[float, bool]]] = {}
    for rollout in rollouts.rollouts:
        if rollout.reward is not None and rollout.outcome is not Outcome.UNCHECKED:
            name = rollout.prompt.row.verifier or ""
            verified = rollout.outcome is Outcome.VERIFIED
            by_verifier.setdefault(name, []).append((rollout.reward, verified))
    for name, seen in sorted(by_verifier.items()):
        metrics[f"rewards/{name}/mean"] = sum(reward for reward, _ in seen) / len(seen)
        metrics[f"verifier/{name}/accuracy"] = sum(verified for _, verified in seen) / len(seen)
    everything = [verified for seen in by_verifier.values() for _, verified in seen]
    if everything:
        metrics["objective/verified"] = sum(everything) / len(everything)
    scores = [r.score for r in rollouts.rollouts if r.score is not None]
    if scores:
        metrics["objective/scores"] = fmean(scores)
        metrics["objective/scores_std"] = pstdev(scores)
    return metrics


def add(sums: Sums, numbers: Mapping[str, float]) -> None:
    """Add `numbers` to `sums`."""
    for name, number in numbers.items():
        sums[name] = max(sums[name], number) if name in _MAXIMA else sums[name] + number


def described(
    rollouts: RolloutBatch,
    part: Pass,
    logprobs: Tensor,
    entropies: Tensor,
    reference: Tensor | None,
) -> Sums:
    """The policy's numbers of one pass, as it was when it sampled."""
    gap = logprobs - gather(rollouts.sampler_logprobs, rollouts.mask, part.indices)
    sums = Sums(
        float,
        {
            "tokens": len(logprobs),
            "completions": len(part.indices),
            "entropy": entropies.sum().item(),
            "mismatch/logprob_abs_mean": gap.abs().sum().item(),
            # KL(sampler || trainer), which is 0 where they are the same program.
            "mismatch/kl": (torch.expm1(gap) - gap).sum().item(),
            "mismatch/logprob_abs_max": gap.abs().max().item(),
        },
    )
    if reference is not None:
        sums["kl"] = kl_k3(logprobs, reference).sum().item()
        sums["objective/kl"] = kl_k1(logprobs, reference).sum().item()
    return sums


def means_of(sums: Sums) -> dict[str, float]:
    """Sums over tokens as means; `objective/kl` per completion, as open-instruct reports it."""
    per_token = ("entropy", "kl", "mismatch/logprob_abs_mean", "mismatch/kl")
    per_update_token = (
        "loss/policy", "loss/value", "clip_ratio", "value/clip_ratio", "policy/approx_kl",
        "mismatch/importance_weight", "mismatch/capped_ratio",
    )  # fmt: skip
    means: dict[str, float] = {}
    for names, unit in (
        (per_token, "tokens"),
        (per_update_token, "update_tokens"),
        (("objective/kl",), "completions"),
    ):
        means |= {name: sums[name] / sums[unit] for name in names if name in sums}
    return means | {name: sums[name] for name in _MAXIMA if name in sums}

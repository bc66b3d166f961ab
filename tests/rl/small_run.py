"""RLVR on a model of a few thousand weights: settings of a few steps, and what came of them."""

import hashlib

from caravan.recipe import GRPOConfig, LoRAConfig, PPOConfig, Resources, Sampling
from caravan.stages.configs import RLVRStageConfig

GRPO = GRPOConfig(num_generations=8)
PPO = PPOConfig(value_learning_rate=5e-3)
LORA = LoRAConfig(rank=4, alpha=8)


def config(algorithm=GRPO, **changes):
    values = {
        "algorithm": algorithm,
        "learning_rate": 5e-3,
        "lr_scheduler_type": "constant",
        "max_steps": 4,
        "prompts_per_step": 8 if algorithm.kind == "grpo" else 48,
        "beta": 0.01,
        "verification_reward": 1.0,
        "missing_eos_reward": None,
        "sampling": Sampling(max_completion_length=8),
        "skills": ("digits",),
        "bf16": False,
        "resources": Resources(cpus=1),
    }
    return RLVRStageConfig.model_validate(values | changes)


def digest(context):
    files = sorted(p for p in (context.root / "out").rglob("*") if p.is_file())
    return {
        str(p.relative_to(context.root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files
    }


def without_speed(logged):
    return {
        step: {k: v for k, v in metrics.items() if not k.startswith("perf/")}
        for step, metrics in logged.items()
    }

"""Reinforcement learning with verifiable rewards: PPO as in Tülu 3, and GRPO as in Tülu 3.1.

`advantages`, `ppo` and `grpo` are pure functions of tensors. `rollout` samples and verifies,
`trainer` puts them together into one step.
"""

"""Supervised fine-tuning against TRL: as it ships, grouped by length, and packed."""

from tests.benchmarks.training_compare import compare

SIDES = ["caravan", "trl-default", "trl-grouped", "trl-packed"]


def main() -> None:
    compare("sft", "pocket", SIDES)

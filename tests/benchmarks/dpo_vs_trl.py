"""Length-normalised DPO against TRL: as it ships, and with the reference computed beforehand."""

from tests.benchmarks.training_compare import compare

SIDES = ["caravan", "trl-default", "trl-grouped"]


def main() -> None:
    compare("dpo", "pocket", SIDES)

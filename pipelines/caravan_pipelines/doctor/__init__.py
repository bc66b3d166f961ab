"""caravan doctor: is everything there that runs need, and if not, what is to be done?

for finding in examine(all_checks(settings)):
    print(finding.name, finding.state, finding.says)
"""

from caravan_pipelines.doctor.checks import all_checks
from caravan_pipelines.doctor.finding import Check, Finding, Outcome, examine

__all__ = ["Check", "Finding", "Outcome", "all_checks", "examine"]

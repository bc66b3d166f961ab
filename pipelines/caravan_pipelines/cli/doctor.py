"""caravan doctor: print what the checks find."""

from __future__ import annotations

import logging
import sys
from dataclasses import asdict

from rich.console import Console
from rich.text import Text

from caravan.settings import load_settings
from caravan_pipelines.cli.common import print_json
from caravan_pipelines.doctor import Finding, Outcome, all_checks, examine

STYLE = {Outcome.OK: "green", Outcome.BROKEN: "red", Outcome.SKIPPED: "dim"}


def doctor(*, as_json: bool) -> None:
    """Make every check; exit code 1 says that something is broken."""
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # what it tries again is told by checks
    console = Console()
    found: list[Finding] = []
    for finding in examine(all_checks(load_settings())):
        found.append(finding)
        if not as_json:
            state = (f"{finding.state:<9}", STYLE[finding.state])
            said = Text.assemble(state, (f"{finding.name}: ", "bold"), finding.says)
            console.print(said, soft_wrap=True)
    if as_json:
        print_json([asdict(finding) for finding in found])
    if any(finding.state is Outcome.BROKEN for finding in found):
        sys.exit(1)

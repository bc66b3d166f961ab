"""What people prefer of preference pairs: how far they agree, and the pairs as they want them."""

from __future__ import annotations

import os
import re
from dataclasses import asdict
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from caravan.data.io import read_rows, write_rows
from caravan.data.records import Pair
from caravan.errors import CaravanError
from caravan.evals.agreement import Agreement, agreement, by_people
from caravan.evals.stats import Interval
from caravan.registry import ArtifactRow, Registry, open_registry
from caravan.settings import load_settings
from caravan.store import open_store
from caravan_pipelines.cli.artifacts import find
from caravan_pipelines.cli.common import print_json
from caravan_pipelines.cli.tables import print_table

PAIRS = "pair/pairs"
DIGEST = re.compile("[0-9a-f]{4,64}")


def ratings(reference: str, to: Path | None, *, as_json: bool) -> None:
    """Print how far people agree; with `to`, also write the pairs that they have decided about.

    Raises:
        CaravanError: there are no such pairs, nobody has rated one, or the file is there already.
    """
    settings = load_settings()
    with open_registry(settings) as registry:
        artifact = _pairs(reference, registry)
        rated = registry.pair_ratings(artifact.digest)
    found = agreement(rated)
    if not found.pairs:
        raise CaravanError(
            f"nobody has rated a pair of {reference} yet: people do so on the dashboard's page "
            "Preference pairs, under Rate"
        )
    if as_json:
        print_json({"digest": artifact.digest, **asdict(found)})
    else:
        _print(artifact, found)
    if to is not None:
        if os.path.lexists(to):
            raise CaravanError(f"{to} exists; name a file that does not")
        stored = open_store(settings.resolved_store_url, settings).fetch(artifact.digest)
        written = write_rows(to, by_people(read_rows(stored, Pair), rated))
        if not as_json:
            left = found.pairs - written
            print(
                f"{to}: {written} pairs; left out: {left} that people call equal, or are split on"
            )


def _pairs(reference: str, registry: Registry) -> ArtifactRow:
    """The pairs of a run, or of an artifact's digest or name."""
    if ":" in reference or DIGEST.fullmatch(reference):
        return find(reference, registry)
    return find(f"{registry.get_run(reference).id}:{PAIRS}", registry)


def _print(artifact: ArtifactRow, found: Agreement) -> None:
    console = Console()
    console.print(f"pairs {artifact.digest[:12]}: {found.pairs} rated by people", highlight=False)
    numbers = [Column(name, justify="right") for name in ("rated", "ties", "skipped")]
    table = Table("person", *numbers, "agrees with the judge", box=SIMPLE_HEAD)
    for person in found.people:
        counts = [person.rated, person.counts.get("tie", 0), person.counts.get("skip", 0)]
        table.add_row(Text(person.person), *map(str, counts), _shown(person.with_judge))
    print_table(console, table)
    print(f"people and the judge: {_shown(found.with_judge)}")
    alpha = "" if found.alpha is None else f"; Krippendorff's alpha {found.alpha:.2f}"
    print(f"people among themselves: {_shown(found.among_people)}{alpha}")


def _shown(interval: Interval | None) -> str:
    """`81.1 % (65.8 to 90.5) of 37 pairs`."""
    if interval is None:
        return "–"
    value, low, high = (100 * v for v in (interval.value, interval.low, interval.high))
    return f"{value:.1f} % ({low:.1f} to {high:.1f}) of {interval.n} pairs"

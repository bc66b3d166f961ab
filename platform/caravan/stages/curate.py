"""Load every source, check it, drop what does not belong, and say so on a data card.

Outputs:
    dataset: the rows that stay, sources in the order of the recipe, rows in the order of a source.
    card: card.json and card.md (counts, drops by reason, licences, lengths, samples per source),
        duplicates.jsonl (every duplicate with the row it repeats).
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from glob import glob
from itertools import count
from os.path import expanduser
from pathlib import Path
from typing import Any, TypeVar

from caravan.data.card import SourceCard, card_json, card_markdown, counted
from caravan.data.dedup import Duplicate, ExactDuplicates, NearDuplicates, text_of
from caravan.data.formats import AskedRow, Labels, to_conversation
from caravan.data.io import ROWS, write_json, write_rows, write_text
from caravan.data.readers import RawRow, read_hub, read_raw
from caravan.data.records import Conversation, Record
from caravan.errors import DataError, RecipeError
from caravan.recipe import CurateConfig, FileSource, GeneratedSource, HubSource, Source
from caravan.recipe.checks import refused_licenses, suggest
from caravan.stages.configs import CurateStageConfig
from caravan.stages.context import StageContext, StageResult
from caravan.verifiers import VERIFIERS

logger = logging.getLogger(__name__)

R = TypeVar("R")

NAME = "curate"
VERSION = 3


def external_files(config: CurateConfig, recipe_dir: Path) -> Iterable[Path]:
    """The source files, whose content the dataset depends on."""
    for source in config.sources:
        if isinstance(source.origin, FileSource):
            yield from source_files(source.origin, recipe_dir)


class DuplicateRow(Record):
    """One line of duplicates.jsonl."""

    id: str
    source: str
    reason: str
    of: str
    similarity: float


def run(
    config: CurateStageConfig, inputs: Mapping[str, Path], context: StageContext
) -> StageResult:
    check_licenses(config)
    cards: list[SourceCard] = []
    duplicates: list[DuplicateRow] = []
    filters = Filters(config, duplicates)

    def rows() -> Iterator[Conversation]:
        for number, source in enumerate(config.sources):
            context.progress(number, len(config.sources))
            card = SourceCard(source)
            cards.append(card)
            loaded = load(
                source,
                context.seed,
                context.recipe_dir,
                config.own_verifiers,
                unread=card.unread,
            )
            yield from curate(loaded, card, filters)
            _check_count(card)
            _warn(f"source {source.name}", card.available, card.dropped, card.remarks())

    kept = write_rows(context.output("dataset", "dataset") / ROWS, rows())
    context.progress(len(config.sources), len(config.sources))
    if not kept:
        raise DataError("no row of any source was kept; look at the sources and at `curate`")
    directory = context.output("card", "report")
    card = card_json(cards)
    write_json(directory / "card.json", card)
    write_text(directory / "card.md", card_markdown(card))
    write_rows(directory / "duplicates.jsonl", duplicates)
    if len(cards) > 1:
        _warn_of_all(card)
    metrics = {"rows": float(kept), "available": float(card["available"])}
    if card["without_reply"]:
        metrics["without_reply"] = float(card["without_reply"])
    metrics |= {f"dropped/{reason}": float(n) for reason, n in card["dropped"].items()}
    return StageResult(metrics=metrics)


def _warn_of_all(card: Mapping[str, Any]) -> None:
    """The last warning, which is the one that is shown of a stage, is of all sources."""
    remarks = [f"{card['without_reply']:,} without a reply"] if card["without_reply"] else []
    if card["may_be_missing"]:
        remarks.append(f"{card['may_be_missing']:,} with a turn that is only nan, None or null")
    if names := [source["name"] for source in card["sources"] if source["columns_not_read"]]:
        remarks.append(f"not all columns are read of {', '.join(names)}")
    _warn("all sources", card["available"], card["dropped"], remarks)


def _warn(what: str, available: int, dropped: Mapping[str, int], remarks: Sequence[str]) -> None:
    said = [*([f"dropped: {counted(dropped)}"] if dropped else []), *remarks]
    if said:
        logger.warning("%s: %s rows; %s", what, f"{available:,}", "; ".join(said))


def curate(
    rows: Iterable[Conversation], card: SourceCard, filters: Filters
) -> Iterator[Conversation]:
    """The rows that pass, counted on `card` with those that do not."""
    for row in rows:
        card.count(row)
        reason = filters.reason_to_drop(row)
        if reason:
            card.dropped[reason] += 1
        else:
            card.keep(row)
            yield row


class Filters:
    """What a row is dropped for. Remembers all rows that passed, so order matters: first stays."""

    def __init__(self, config: CurateConfig, duplicates: list[DuplicateRow]) -> None:
        self._forbidden = _any_of(config.forbidden_phrases)
        self._exact = ExactDuplicates() if config.drop_exact_duplicates else None
        threshold = config.near_duplicate_threshold
        self._near = NearDuplicates(threshold) if threshold is not None else None
        self._duplicates = duplicates

    def reason_to_drop(self, row: Conversation) -> str | None:
        if not all(message.content.strip() for message in row.messages):
            return "empty message"
        if row.label is False:
            return "label false"
        replies = (m.content for m in row.messages if m.role == "assistant")
        if self._forbidden and any(self._forbidden.search(reply) for reply in replies):
            return "forbidden phrase"
        if self._exact and (found := self._exact.find_or_add(row)):
            return self._duplicate(row, "exact duplicate", found)
        if self._near:
            prompt, reply = row.prompt, row.messages[len(row.prompt) :]
            found = self._near.find_or_add(row.id, text_of(prompt), text_of(reply))
            if found:
                return self._duplicate(row, "near duplicate", found)
        return None

    def _duplicate(self, row: Conversation, reason: str, found: Duplicate) -> str:
        self._duplicates.append(
            DuplicateRow(
                id=row.id,
                source=row.source,
                reason=reason,
                of=found.of,
                similarity=round(found.similarity, 4),
            )
        )
        return reason


def load(
    source: Source,
    seed: int,
    recipe_dir: Path,
    own_verifiers: Collection[str] = (),
    *,
    unread: set[str] | None = None,
) -> Iterator[Conversation]:
    """The rows of one source as conversations with the ids `source/0`, `source/1`, ...

    Args:
        own_verifiers: names that rows may have for a verifier, beside those of `VERIFIERS`.
        unread: gets the names of the columns that nothing reads.

    Raises:
        DataError: a file or a row is not what it should be; names the file, the row and the field.
    """
    labels = Labels(source.name, source.skill, source.license, source.verifier)
    verifiers = (*own_verifiers, *VERIFIERS)
    if isinstance(source.origin, GeneratedSource):
        for generated in _generated(source.origin, labels, seed):
            yield _with_known_verifier(generated, source, verifiers)
        return

    def read(row: RawRow, id: str) -> Conversation:
        return _with_known_verifier(to_conversation(row, id, labels), source, verifiers)

    yield from read_source(source.name, source.origin, recipe_dir, read, unread)


def read_source(
    name: str,
    origin: FileSource | HubSource,
    recipe_dir: Path,
    read: Callable[[RawRow, str], R],
    unread: set[str] | None,
) -> Iterator[R]:
    """What `read` makes of each row of a source and of its id: `name/0`, `name/1`, ...

    Args:
        unread: gets the names of the columns that nothing reads.

    Raises:
        DataError: a file or a row is not what it should be; names the file, the row and the field.
    """
    numbers = count()
    for where, rows in _tables(origin, recipe_dir):
        for number, row in rows:
            asked = AskedRow(row)
            try:
                made = read(asked, f"{name}/{next(numbers)}")
            except DataError as error:
                raise DataError(f"source {name}: {where}, row {number}: {error}") from error
            if unread is not None:
                unread.update(asked.unread())
            yield made


def _with_known_verifier(
    row: Conversation, source: Source, verifiers: Collection[str]
) -> Conversation:
    """The row, with the source's verifier where its own is a name that only its authors know."""
    if row.verifier is None or row.verifier in verifiers:
        return row
    if source.verifier not in verifiers:
        raise DataError(
            f"unknown verifier {row.verifier!r}{suggest(row.verifier, verifiers)}; "
            f"or set `verifier` of the source"
        )
    return row.model_copy(update={"verifier": source.verifier})


def check_licenses(config: CurateConfig) -> None:
    """Refuse sources whose licence the recipe does not allow; an unknown one must be allowed.

    Raises:
        RecipeError: names the source.
    """
    if refused := list(refused_licenses(config)):
        raise RecipeError("\n".join(refused))


def source_files(origin: FileSource, recipe_dir: Path) -> list[Path]:
    """The files that `paths` means, sorted within each pattern. A file of that very name goes
    first, as `a[1].jsonl` is both a name and a pattern.

    Raises:
        DataError: a pattern matches no file, or names a directory.
    """
    found: list[Path] = []
    for pattern in map(expanduser, origin.paths):
        if (recipe_dir / pattern).is_dir():
            raise DataError(
                f"{recipe_dir / pattern} is a directory; name the files in it, such as "
                f"{str(Path(pattern) / '*.jsonl')!r}"
            )
        literal = (recipe_dir / pattern).is_file()
        matches = (
            [pattern] if literal else sorted(glob(pattern, root_dir=recipe_dir, recursive=True))
        )
        files = [recipe_dir / match for match in matches if (recipe_dir / match).is_file()]
        if not files:
            raise DataError(
                f"no file matches {pattern!r} in {recipe_dir}; "
                "paths are relative to the recipe's directory"
            )
        found += files
    return found


def _tables(
    origin: FileSource | HubSource, recipe_dir: Path
) -> Iterator[tuple[str, Iterator[tuple[int, RawRow]]]]:
    """Each file or dataset of a source: its name, and its rows with their numbers."""
    if isinstance(origin, HubSource):
        yield origin.dataset_name, read_hub(origin)
    else:
        yield from ((str(path), read_raw(path)) for path in source_files(origin, recipe_dir))


def _generated(origin: GeneratedSource, labels: Labels, seed: int) -> Iterator[Conversation]:
    from caravan.pocket.sources import GENERATORS

    if origin.generator not in GENERATORS:
        raise RecipeError(
            f"source {labels.source}: no generator {origin.generator!r}; "
            f"there are: {', '.join(sorted(GENERATORS))}"
        )
    own_seed = int.from_bytes(hashlib.sha256(f"{seed}/{labels.source}".encode()).digest()[:4])
    generate: Callable[[int, int], Iterator[Conversation]] = GENERATORS[origin.generator]
    for number, row in enumerate(generate(origin.count, own_seed)):
        yield row.model_copy(
            update={
                "id": f"{labels.source}/{number}",
                "source": labels.source,
                "skill": labels.skill,
                "license": labels.license,
                "verifier": row.verifier or (labels.verifier if row.ground_truth else None),
            }
        )


def _check_count(card: SourceCard) -> None:
    source = card.source
    if source.rows is not None and card.available != source.rows:
        raise DataError(
            f"source {source.name} holds {card.available} rows, the recipe says {source.rows}; "
            "check the files or the split, or correct `rows`"
        )
    if not card.available:
        raise DataError(f"source {source.name} holds no row; check its origin")


def _any_of(phrases: tuple[str, ...]) -> re.Pattern[str] | None:
    """Any of the phrases as whole words, in any case."""
    if not phrases:
        return None
    longest_first = sorted(phrases, key=len, reverse=True)
    alternatives = "|".join(re.escape(phrase) for phrase in longest_first)
    return re.compile(rf"(?<!\w)(?:{alternatives})(?!\w)", re.IGNORECASE)

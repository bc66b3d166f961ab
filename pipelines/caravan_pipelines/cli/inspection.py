"""Show a row token by token with what is trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from caravan.data.card import not_read
from caravan.data.formats import AskedRow, Labels, to_conversation
from caravan.data.io import ROWS, read_rows
from caravan.data.preferences import to_pair
from caravan.data.readers import RawRow, read_raw
from caravan.data.records import Conversation, Pair
from caravan.errors import CaravanError, DataError
from caravan.recipe.checks import suggest
from caravan.registry import open_registry
from caravan.settings import load_settings
from caravan.store import open_store
from caravan_pipelines.cli.artifacts import find

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from caravan.training.batching import TokenRow

TRAINED = ("black on green3", "black on dark_sea_green2")
MASKED = ("default", "grey62")
"""In turn, so that the borders between tokens are seen."""
SUGGESTED_FROM = 10_000
"""Ids that an unknown one is compared with."""


class Side(NamedTuple):
    """What one line of training holds of a row."""

    title: str
    row: TokenRow
    kept: int
    """Tokens that are left after the cut."""
    texts: list[str]
    """Of each token, as it is shown."""


def inspect(
    reference: str,
    row_id: str | None,
    stage: str | None,
    model: str | None,
    *,
    max_length: int | None,
    table: bool,
) -> None:
    """Print one row of a file, in any format that a source may have, or of an artifact.

    Raises:
        CaravanError: there is no such file, artifact, row or tokenizer; says what to give.
    """
    path = _rows(reference)
    stage = stage or _stage_of(path)
    unread: set[str] = set()
    chosen = _pick(_records(path, stage, unread), row_id, path)
    sides = list(_sides(chosen, _tokenizer(reference, model), max_length))
    console = Console()
    if ignored := unread - (Conversation.model_fields.keys() - {"label"}):
        console.print(Text(not_read(ignored), style="yellow"), soft_wrap=True)
    if isinstance(chosen, Conversation) and chosen.label is False:
        console.print(Text("label false: a run drops this row", style="yellow"), soft_wrap=True)
    for side in sides:
        console.print(_summary(side), highlight=False)
        # Without colours the mask would not be seen.
        as_table = table or console.color_system is None
        console.print(_as_table(side) if as_table else _as_text(side))


def _rows(reference: str) -> Path:
    """The rows file that `reference` names."""
    if Path(reference).is_file():
        return Path(reference)
    try:
        directory = Path(reference) if Path(reference).is_dir() else _artifact(reference)
    except CaravanError as error:
        raise CaravanError(f"{reference}: no such file, and no such artifact: {error}") from error
    if not (directory / ROWS).is_file():
        raise DataError(f"{reference} has no {ROWS}: it holds no rows to train on")
    return directory


def _artifact(reference: str) -> Path:
    settings = load_settings()
    with open_registry(settings) as registry:
        found = find(reference, registry)
    return open_store(settings.resolved_store_url, settings).fetch(found.digest)


def _stage_of(path: Path) -> str:
    """`dpo` where the first row is a pair, else `sft`."""
    _, first = next(read_raw(path / ROWS if path.is_dir() else path), (0, {}))
    return "dpo" if "chosen" in first else "sft"


def _records(path: Path, stage: str, unread: set[str]) -> Iterator[Conversation | Pair]:
    if path.is_dir():
        return read_rows(path, Pair if stage == "dpo" else Conversation)
    return _read_source(path, to_pair if stage == "dpo" else to_conversation, unread)


def _read_source(
    path: Path, read: Callable[[RawRow, str, Labels], Conversation | Pair], unread: set[str]
) -> Iterator[Conversation | Pair]:
    """The rows of a file of one's own, as a run reads them; without an id of their own they are
    numbered from 0, as there."""
    labels = Labels(source="", skill="", license="")
    for index, (number, row) in enumerate(read_raw(path)):
        id, asked = row.get("id"), AskedRow(row)
        try:
            made = read(asked, str(index if id is None else id), labels)
        except DataError as error:
            raise DataError(f"{path}, row {number}: {error}") from error
        unread.update(asked.unread())
        yield made


def _pick(
    rows: Iterator[Conversation | Pair], row_id: str | None, path: Path
) -> Conversation | Pair:
    seen: list[str] = []
    for row in rows:
        if row_id is None or row.id == row_id:
            return row
        if len(seen) < SUGGESTED_FROM:
            seen.append(row.id)
    if row_id is None:
        raise DataError(f"{path} has no rows; give a file with at least one")
    raise DataError(f"{path} has no row {row_id!r}{suggest(row_id, seen)}")


def _tokenizer(reference: str, model: str | None) -> PreTrainedTokenizerBase:
    """Of the model that is named, else of the base model of the run that the rows are from."""
    from caravan.training.importing import check_import

    if model is None:
        run, colon, _ = reference.partition(":")
        if not colon or Path(reference).exists():
            raise CaravanError(
                "whose tokenizer? give --model with a model's directory or artifact (a run's own "
                "is known where the rows are named RUN:STAGE/OUTPUT)"
            )
        model = f"{run}:base/model"
    # As a base model of a run, which may lack a pad token.
    return check_import(Path(model) if Path(model).is_dir() else _artifact(model)).tokenizer


def _sides(
    row: Conversation | Pair, tokenizer: PreTrainedTokenizerBase, max_length: int | None
) -> Iterator[Side]:
    from caravan.data.template import tokenize_conversation
    from caravan.training.batching import TokenRow
    from caravan.training.tokenize import tokenize_pair

    if isinstance(row, Conversation):
        tokens = tokenize_conversation(tokenizer, row.messages)
        whole: Sequence[TokenRow] = [TokenRow(row.id, tokens.input_ids, tokens.labels_mask)]
    else:
        pair = tokenize_pair(row, tokenizer)
        whole = [pair.chosen, pair.rejected]
    for one in whole:
        texts = [_shown(tokenizer, token) for token in one.input_ids]
        yield Side(one.id, one, min(one.length, max_length or one.length), texts)


def _shown(tokenizer: PreTrainedTokenizerBase, token: int) -> str:
    """A token as text in which everything can be seen; part of a character as the tokenizer
    writes it."""
    text = str(tokenizer.decode([token]))
    if "\ufffd" in text:
        return str(tokenizer.convert_ids_to_tokens(token))
    visible = text.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥")
    # Text of a row never reaches the terminal as commands.
    return "".join(c if c.isprintable() else f"\\u{{{ord(c):x}}}" for c in visible)


def _summary(side: Side) -> Text:
    trained = sum(side.row.loss_mask[: side.kept])
    cut = side.row.length - side.kept
    text = Text.assemble((side.title, "bold"), f": {side.kept} tokens, {trained} trained on")
    if cut:
        text.append(f", {cut} cut off")
    if not trained:
        text.append("; nothing is left to train on, so the row is dropped", "red")
    return text


def _as_text(side: Side) -> Text:
    """The row as it reads, a line break after every newline."""
    text = Text()
    for i, shown in enumerate(side.texts[: side.kept]):
        text.append(shown, (TRAINED if side.row.loss_mask[i] else MASKED)[i % 2])
        if "⏎" in shown:
            text.append("\n")
    return text


def _as_table(side: Side) -> Table:
    table = Table("at", "id", "trained", "token")
    for i, shown in enumerate(side.texts[: side.kept]):
        trained = side.row.loss_mask[i]
        table.add_row(
            str(i), str(side.row.input_ids[i]), "yes" if trained else "",
            Text(shown, TRAINED[0] if trained else ""),
        )  # fmt: skip
    return table

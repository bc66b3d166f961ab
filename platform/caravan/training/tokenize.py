"""Records to token rows: truncated, and without the rows that would teach nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from caravan.data.records import Conversation, Message, Pair
from caravan.data.template import encode_prompt, tokenize_conversation
from caravan.errors import DataError, some
from caravan.training.batching import TokenRow

logger = logging.getLogger(__name__)

NAMED = 8
"""Row ids listed in an error."""

RowT = TypeVar("RowT")


@dataclass(frozen=True)
class PairRow:
    """A pair as two token rows; only the completions are in their loss masks."""

    id: str
    chosen: TokenRow
    rejected: TokenRow
    margin: float = 0.0
    """By how much the chosen completion is rated higher."""

    @property
    def length(self) -> int:
        """Of the longer side, in tokens."""
        return max(self.chosen.length, self.rejected.length)


@dataclass(frozen=True)
class Tokenized(Generic[RowT]):
    rows: list[RowT]
    too_long: int
    """Rows without a supervised token (or, where asked, without an end token) in `max_length`."""
    truncated: int
    """Rows that were cut at `max_length` and kept."""
    without_reply: int = 0
    """Rows with nothing to train on at any length."""
    sources: Sequence[str] = ()
    """The source of each of `rows`, where they know it."""

    @property
    def dropped(self) -> int:
        return self.too_long + self.without_reply

    @property
    def counts(self) -> dict[str, float]:
        reasons = {"no reply": self.without_reply, "too long": self.too_long}
        return {
            "rows": len(self.rows),
            "dropped_rows": self.dropped,
            "truncated_rows": self.truncated,
            **{f"dropped/{reason}": n for reason, n in reasons.items() if n},
        }


def tokenize_conversations(
    conversations: Iterable[Conversation], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Tokenized[TokenRow]:
    """One row for each conversation whose first `max_length` tokens hold a supervised one.

    Raises:
        DataError: none of them does.
    """
    rows: list[TokenRow] = []
    sources: list[str] = []
    without_reply = too_long = truncated = 0
    for conversation in conversations:
        if not conversation.has_reply:
            without_reply += 1
            continue
        tokens = tokenize_conversation(tokenizer, conversation.messages, max_length)
        if tokens.supervised_tokens == 0:
            too_long += 1
            continue
        truncated += tokens.truncated
        sources.append(conversation.source)
        rows.append(TokenRow(conversation.id, tokens.input_ids, tokens.labels_mask))
    check_masks(rows)
    return _report(Tokenized(rows, too_long, truncated, without_reply, sources), max_length)


def tokenize_pairs(
    pairs: Iterable[Pair],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    whole: bool = False,
) -> Tokenized[PairRow]:
    """One row for each pair both of whose completions begin within `max_length` tokens.

    Args:
        whole: both completions must end there too: their end tokens are read.

    Raises:
        DataError: no pair is left.
    """
    rows: list[PairRow] = []
    too_long = truncated = 0
    for pair in pairs:
        row = tokenize_pair(pair, tokenizer)
        cut = row.length > max_length
        chosen, rejected = _cut(row.chosen, max_length), _cut(row.rejected, max_length)
        kept = replace(row, chosen=chosen, rejected=rejected)
        if not any(chosen.loss_mask) or (whole and cut):
            too_long += 1
            continue
        truncated += cut
        rows.append(kept)
    check_masks([side for row in rows for side in (row.chosen, row.rejected)])
    return _report(Tokenized(rows, too_long, truncated), max_length)


def tokenize_pair(pair: Pair, tokenizer: PreTrainedTokenizerBase) -> PairRow:
    """A pair at its full length."""
    prompt = encode_prompt(tokenizer, pair.prompt)
    chosen = _completion(f"{pair.id}:chosen", prompt, pair, pair.chosen, tokenizer)
    rejected = _completion(f"{pair.id}:rejected", prompt, pair, pair.rejected, tokenizer)
    return PairRow(pair.id, chosen, rejected, pair.margin)


def check_masks(rows: Sequence[TokenRow]) -> None:
    """Refuse rows with nothing to train on, or with nothing but: then no batch is either.

    Raises:
        DataError: names the rows.
    """
    nothing = [row.id for row in rows if not any(row.loss_mask)]
    everything = [row.id for row in rows if all(row.loss_mask)]
    for ids, what in ((nothing, "no token"), (everything, "every token, the prompt's too,")):
        if ids:
            raise DataError(
                f"{what} of rows {some(ids, NAMED)} would be trained on: the mask is "
                "wrong; look at one with `caravan data inspect FILE --row ID`"
            )


def check_length(model: PreTrainedModel, max_length: int) -> None:
    """Refuse rows longer than the model can read."""
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and max_length > positions:
        raise DataError(
            f"max_length={max_length} is more than the {positions} positions of the model; set "
            f"max_length to at most {positions}"
        )


def _completion(
    row_id: str, prompt: list[int], pair: Pair, text: str, tokenizer: PreTrainedTokenizerBase
) -> TokenRow:
    messages = (*pair.prompt, Message(role="assistant", content=text))
    ids = tokenize_conversation(tokenizer, messages).input_ids
    assert ids[: len(prompt)] == prompt, f"{pair.id}: the prompt is not a prefix of its completion"
    return TokenRow(row_id, ids, [False] * len(prompt) + [True] * (len(ids) - len(prompt)))


def _cut(row: TokenRow, max_length: int) -> TokenRow:
    return TokenRow(row.id, row.input_ids[:max_length], row.loss_mask[:max_length])


def _report(tokenized: Tokenized[RowT], max_length: int) -> Tokenized[RowT]:
    without_reply, too_long = tokenized.without_reply, tokenized.too_long
    total = tokenized.dropped + len(tokenized.rows)
    said = []
    if without_reply:
        said.append(f"{without_reply} of {total} rows have no reply and are dropped")
    if too_long:
        said.append(
            f"{too_long} of {total} rows have no reply to train on within max_length={max_length} "
            "tokens and are dropped"
        )
    if said:
        logger.warning("%s", "; ".join(said))
    if too_long and not tokenized.rows:
        which = "rows with a reply" if without_reply else "rows"
        raise DataError(
            f"all {too_long} {which} are longer than max_length={max_length} before the "
            "reply that is trained on; raise max_length"
        )
    if without_reply and not tokenized.rows:
        raise DataError(
            f"none of the {without_reply} rows has a reply to train on; look at the columns of the "
            "sources (docs/data-formats.md)"
        )
    if not tokenized.rows:
        raise DataError("the dataset has no rows; look at the stage that made it")
    return tokenized

"""From records to token rows: what is cut, dropped, counted and refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from caravan.data.records import Conversation, Message
from caravan.errors import DataError
from caravan.training.batching import TokenRow
from caravan.training.bpe import train_tokenizer
from caravan.training.pairs import pair_passes
from caravan.training.reference import NO_REFERENCE
from caravan.training.tokenize import check_masks, tokenize_conversations, tokenize_pairs
from tiny import TEXTS, conversations, pairs

TOKENIZER = train_tokenizer(TEXTS, vocab_size=320, model_max_length=64)


def chat(row_id: str, *turns: str) -> Conversation:
    """Turns in turn of the user and the assistant."""
    messages = tuple(
        Message(role="assistant" if i % 2 else "user", content=text) for i, text in enumerate(turns)
    )
    return Conversation(id=row_id, messages=messages, source="t", skill="s", license="MIT")


short = st.text(alphabet="ab c", max_size=12)
chats = st.lists(
    st.lists(short, min_size=2, max_size=6).map(lambda turns: turns[: len(turns) // 2 * 2]),
    min_size=1,
    max_size=5,
)


@settings(max_examples=60, deadline=None)
@given(chats, st.integers(1, 90))
def test_no_cut_ever_leaves_a_row_without_a_supervised_token(turns, max_length):
    rows = [chat(f"r{i}", *texts) for i, texts in enumerate(turns)]
    whole = {row.id: row for row in tokenize_conversations(rows, TOKENIZER, 10_000).rows}
    if not any(any(row.loss_mask[:max_length]) for row in whole.values()):
        message = f"all {len(rows)} rows are longer than max_length={max_length}"
        with pytest.raises(DataError, match=message):
            tokenize_conversations(rows, TOKENIZER, max_length)
        return
    data = tokenize_conversations(rows, TOKENIZER, max_length)
    assert len(data.rows) + data.dropped == len(rows)
    for row in data.rows:
        assert any(row.loss_mask)
        assert row.length <= max_length
        assert list(row.input_ids) == list(whole[row.id].input_ids[:max_length])
        assert list(row.loss_mask) == list(whole[row.id].loss_mask[:max_length])
    kept = {row.id for row in data.rows}
    for row_id, row in whole.items():
        assert (row_id in kept) == any(row.loss_mask[:max_length])
    cut = sum(whole[row.id].length > max_length for row in data.rows)
    dropped = len(rows) - len(kept)
    reasons = {"dropped/too long": dropped} if dropped else {}
    assert data.counts == {
        "rows": len(kept), "dropped_rows": dropped, "truncated_rows": cut,
        **reasons,
    }  # fmt: skip


@pytest.mark.parametrize("max_length", [20, 28, 32, 64])
def test_both_sides_of_a_pair_keep_a_supervised_token_or_the_pair_goes(max_length):
    whole = {row.id: row for row in tokenize_pairs(pairs(), TOKENIZER, 10_000).rows}
    try:
        data = tokenize_pairs(pairs(), TOKENIZER, max_length)
    except DataError:
        assert not any(any(row.chosen.loss_mask[:max_length]) for row in whole.values())
        return
    assert len(data.rows) + data.dropped == 20
    for row in data.rows:
        assert any(row.chosen.loss_mask)
        assert any(row.rejected.loss_mask)
        assert row.length <= max_length


def test_a_pair_knows_by_how_much_its_chosen_side_is_rated_higher():
    given = [
        pair.model_copy(update={"chosen_rating": 3.5 + i, "rejected_rating": 1.0})
        for i, pair in enumerate(pairs(3))
    ]
    rows = tokenize_pairs(given, TOKENIZER, 64).rows
    assert [row.margin for row in rows] == [2.5, 3.5, 4.5]
    [batch] = pair_passes(rows, NO_REFERENCE, 10_000, TOKENIZER.pad_token_id, [2, 0])
    margins = dict(zip(batch.row_ids, batch.margins.tolist(), strict=True))
    assert margins == {"t/2": 4.5, "t/0": 2.5}


def test_a_pair_whose_end_is_read_is_whole_or_goes():
    data = tokenize_pairs(pairs(), TOKENIZER, 50, whole=True)
    end = TOKENIZER.eos_token_id
    assert data.dropped > 0
    assert all(r.chosen.input_ids[-1] == r.rejected.input_ids[-1] == end for r in data.rows)


def test_every_assistant_turn_and_its_end_token_is_supervised_and_nothing_else():
    row = tokenize_conversations([chat("r", "a", "bb", "c", "dd")], TOKENIZER, 200).rows[0]
    text = TOKENIZER.decode(
        [i for i, m in zip(row.input_ids, row.loss_mask, strict=True) if m]
    )  # fmt: skip
    assert text == "bb<|endoftext|>dd<|endoftext|>"


def test_masks_of_nothing_or_everything_are_refused_with_the_rows_ids():
    fine = TokenRow("fine", [1, 2], [False, True])
    check_masks([fine])
    with pytest.raises(DataError, match=r"no token of rows empty would be trained on"):
        check_masks([fine, TokenRow("empty", [1, 2], [False, False])])
    full = [TokenRow(f"full/{i}", [1, 2], [True, True]) for i in range(10)]
    with pytest.raises(DataError, match=r"every token.* rows full/0, .*full/7 and 2 more would"):
        check_masks([fine, *full])


def test_rows_without_a_reply_are_told_from_those_whose_reply_does_not_fit(
    caplog: pytest.LogCaptureFixture,
):
    asked, fits, long = chat("asked", "a"), chat("fits", "a", "b"), chat("long", "a" * 60, "b")
    data = tokenize_conversations([asked, fits, long, asked], TOKENIZER, 40)
    assert [row.id for row in data.rows] == ["fits"]
    assert data.counts == {
        "rows": 1, "dropped_rows": 3, "truncated_rows": 0,
        "dropped/no reply": 2, "dropped/too long": 1,
    }  # fmt: skip
    assert caplog.messages == [
        "2 of 4 rows have no reply and are dropped; "
        "1 of 4 rows have no reply to train on within max_length=40 tokens and are dropped",
    ]
    with pytest.raises(DataError, match=r"none of the 2 rows has a reply .* columns"):
        tokenize_conversations([asked, asked], TOKENIZER, 40)
    with pytest.raises(DataError, match=r"all 1 rows with a reply are longer than max_length=40"):
        tokenize_conversations([asked, long], TOKENIZER, 40)


def test_a_dataset_of_rows_longer_than_the_limit_says_what_to_raise():
    with pytest.raises(DataError, match=r"all 20 rows are longer than max_length=8 .*raise max_l"):
        tokenize_conversations(conversations(), TOKENIZER, 8)
    with pytest.raises(DataError, match=r"all 20 rows are longer than max_length=8 .*raise max_l"):
        tokenize_pairs(pairs(), TOKENIZER, 8)
    with pytest.raises(DataError, match="the dataset has no rows"):
        tokenize_conversations([], TOKENIZER, 8)

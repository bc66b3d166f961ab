"""The view Rate of Preference pairs: a person says which reply is better, and knows neither the
models nor what the judge chose.

The pairs come in one order for everyone, so that several people meet on the first ones, a random
sample of all. Which reply stands on the left is another for each person.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from hashlib import sha256

import pandas as pd
import streamlit as st

from caravan.access import Role
from caravan.data.io import ROWS
from caravan.data.records import Pair
from caravan.registry import Choice, PairRatingRow
from caravan_dashboard import launching, library, signin, ui
from caravan_dashboard.markup import facts, join, mono, prose, tag, turn
from caravan_dashboard.rows import read_rows_at


def left_is_chosen(pair_id: str, person: str) -> bool:
    """Whether the reply on the left is the one that the judge chose: for half of the pairs."""
    return sha256(f"{pair_id}\0{person}".encode()).digest()[0] % 2 == 0


def show(pairs: pd.DataFrame, digest: str, ratings: Sequence[PairRatingRow]) -> None:
    """One of the pairs, with what can be said of it; then comes the next that is not rated."""
    user = signin.current_user()
    if not user.may(Role.LAUNCHER):
        ui.empty(f"Rating takes the role {Role.LAUNCHER}.")
        return
    left, right = st.columns([1, 3], vertical_alignment="bottom")
    skills = ui.chooser("Skill", sorted(pairs["skill"].unique()), "skill", where=left)
    wanted = pairs[pairs["skill"].isin(skills)] if skills else pairs
    mine = {rating.pair_id: rating.choice for rating in ratings if rating.person == user.name}
    done = wanted["id"].isin(mine)
    right.progress(float(done.mean()), f"You have seen {done.sum():,} of {len(wanted):,} pairs")
    again = pairs[pairs["id"] == st.query_params.get("pair")]
    found = again if len(again) else wanted[~done].nsmallest(1, "order")
    before = previous(list(mine), None if found.empty else found["id"].item())
    if found.empty:
        ui.empty("You have seen all of these pairs.")
        back(before)
        return
    (pair,) = read_rows_at(library.artifact(digest) / ROWS, found["offset"], Pair)
    ask(pair, digest, mine.get(pair.id), before, left_is_chosen(pair.id, user.name))


def previous(rated: Sequence[str], shown: str | None) -> str | None:
    """The pair that was rated before the one that is shown; the last one before a new one."""
    earlier = rated[: rated.index(shown)] if shown in rated else rated
    return earlier[-1] if earlier else None


def ask(pair: Pair, digest: str, said: Choice | None, before: str | None, swap: bool) -> None:
    sides: tuple[Choice, Choice] = ("chosen", "rejected") if swap else ("rejected", "chosen")
    buttons: list[tuple[str, Choice]] = [
        ("Left is better", sides[0]),
        ("Tie", "tie"),
        ("Right is better", sides[1]),
        ("Skip", "skip"),
    ]
    with st.container(horizontal=True):
        for number, (label, choice) in enumerate(buttons, start=1):
            # The key is of this pair: a second press that comes late says nothing of the next.
            # Digits, since the arrows belong to the choice of the view while it has the focus.
            if st.button(
                label, key=f"{label} {pair.id}", shortcut=str(number),
                type="primary" if choice == said else "secondary",
            ):  # fmt: skip
                ui.act("The rating was not kept.", partial(keep, digest, pair.id, choice))
        back(before)
    ui.show(
        join([
            facts([("", mono(pair.id)), ("skill", pair.skill)]),
            *(turn(message.role, message.content) for message in pair.prompt),
        ])
    )  # fmt: skip
    for column, side in zip(st.columns(2), sides, strict=True):
        reply = pair.chosen if side == "chosen" else pair.rejected
        with column:
            ui.show(tag("div", prose(reply), class_="cv-card"))


def keep(digest: str, pair_id: str, choice: Choice) -> None:
    launching.rate_pair(digest, pair_id, choice)
    st.query_params.pop("pair", None)  # the next one follows


def back(before: str | None) -> None:
    if st.button(
        "Back", key=f"back to {before}", icon=":material/undo:", type="tertiary",
        disabled=before is None, help="To the pair that you rated before, to change it",
    ):  # fmt: skip
        st.query_params["pair"] = before
        st.rerun()

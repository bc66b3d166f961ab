"""Questions of one's own: rows with a prompt and a ground truth, for any verifier, or with options.

    {"prompt": "What is 7 + 5?", "ground_truth": "12"}
    {"question": "What is 7 + 5?", "answer": "12", "id": "sums/1", "skill": "addition"}
    {"prompt": "Water is", "options": ["wet.", "dry."], "ground_truth": "wet."}

A row may be of any format of docs/data-formats.md; what follows its last user's turn is left out.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from caravan.data.formats import Labels, to_conversation
from caravan.data.readers import RawRow, read_raw
from caravan.data.records import EvalInstance
from caravan.errors import DataError
from caravan.evals.reading import distinctive, refuse_shots


def questions(path: Path, shots: int) -> list[EvalInstance]:
    """The rows of a file, named by it and their `id`, or their number from 0 where they have none.

    Raises:
        DataError: a row has no prompt, no ground truth, or the id of another.
    """
    return [instance for _, _, instance in _read(path, shots)]


def questions_with_options(path: Path, shots: int) -> list[EvalInstance]:
    """Likewise, with the column `options`; the ground truths are the true ones, as lists.

    Raises:
        DataError: also where a row has fewer than two options, one of them twice, or a true one
            that is not among them.
    """
    found = []
    for place, row, instance in _read(path, shots):
        options = _texts(given := row.get("options"))
        if len(options) < 2:
            raise DataError(
                f"{place}: options has to be a list of two texts or more, none of them blank: "
                f"{given!r:.80}"
            )
        if twice := [option for option, count in Counter(options).items() if count > 1]:
            raise DataError(
                f"{place}: options has {twice[0]!r:.80} more than once; they have to be all "
                "different"
            )
        truth = instance.ground_truth
        true = _texts([truth] if truth in options else truth)
        if not true or not set(true) < set(options):
            raise DataError(
                f"{place}: ground_truth has to be the text of one of the options, or a list of "
                f"some, but not of all: {truth!r:.80}"
            )
        weighed = {
            "options": options,
            "ground_truth": list(true),
            "question": distinctive(instance.messages[-1].content, options),
        }
        found.append(instance.model_copy(update=weighed))
    return found


def _read(path: Path, shots: int) -> Iterator[tuple[str, RawRow, EvalInstance]]:
    """The place of every row, the row, and its question."""
    refuse_shots(shots, path)
    seen = set()
    for number, row in read_raw(path):
        given, place = row.get("id"), f"{path}, row {number}"
        name = number - 1 if given in (None, "") else given  # "": an empty cell of a CSV
        id = f"{path.name.partition('.')[0]}/{name}"
        if id in seen:
            raise DataError(f"{place}: an earlier row has the id {name!r} too; give each its own")
        seen.add(id)
        try:
            yield place, row, _question(row, id)
        except DataError as error:
            raise DataError(f"{place}: {error}") from error


def _question(row: RawRow, id: str) -> EvalInstance:
    renamed = dict(row)
    if renamed.get("ground_truth") is None:
        renamed["ground_truth"] = renamed.pop("answer", None)
    skill = str(row.get("skill") or "")
    made = to_conversation(renamed, id, Labels(source="", skill=skill, license=""))
    if made.ground_truth is None:
        raise DataError("no column 'ground_truth' or 'answer' says what is right; add one")
    return EvalInstance(id=id, messages=made.prompt, ground_truth=made.ground_truth, skill=skill)


def _texts(options: object) -> tuple[str, ...]:
    """The texts of a list; none where it is no such list, or holds something else or a blank."""
    if isinstance(options, str):  # of a CSV
        with suppress(json.JSONDecodeError):
            options = json.loads(options)
    if not isinstance(options, list | tuple):
        return ()
    return tuple(options) if all(isinstance(o, str) and o.strip() for o in options) else ()

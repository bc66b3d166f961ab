"""Questions of one's own: rows with a prompt and a ground truth, for any verifier.

    {"prompt": "What is 7 + 5?", "ground_truth": "12"}
    {"question": "What is 7 + 5?", "answer": "12", "id": "sums/1", "skill": "addition"}

A row may be of any format of docs/data-formats.md; what follows its last user's turn is left out.
"""

from __future__ import annotations

from pathlib import Path

from caravan.data.formats import Labels, to_conversation
from caravan.data.readers import RawRow, read_raw
from caravan.data.records import EvalInstance
from caravan.errors import DataError
from caravan.evals.reading import refuse_shots


def questions(path: Path, shots: int) -> list[EvalInstance]:
    """The rows of a file, named by it and their `id`, or their number from 0 where they have none.

    Raises:
        DataError: a row has no prompt, no ground truth, or the id of another.
    """
    refuse_shots(shots, path)
    found: dict[str, EvalInstance] = {}
    for number, row in read_raw(path):
        given = row.get("id")
        id = f"{path.name.partition('.')[0]}/{number - 1 if given is None else given}"
        try:
            if id in found:
                raise DataError(f"an earlier row has the id {given!r} too; give each its own")
            found[id] = _question(row, id)
        except DataError as error:
            raise DataError(f"{path}, row {number}: {error}") from error
    return list(found.values())


def _question(row: RawRow, id: str) -> EvalInstance:
    renamed = dict(row)
    if renamed.get("ground_truth") is None:
        renamed["ground_truth"] = renamed.pop("answer", None)
    skill = str(row.get("skill") or "")
    made = to_conversation(renamed, id, Labels(source="", skill=skill, license=""))
    if made.ground_truth is None:
        raise DataError("no column 'ground_truth' or 'answer' for a verifier to compare; add one")
    return EvalInstance(id=id, messages=made.prompt, ground_truth=made.ground_truth, skill=skill)

"""What models said to one question, with the score of each."""

from __future__ import annotations

from collections.abc import Sequence

from caravan.evals.scoring import ScoredCompletion, option_shares
from caravan_dashboard.diff import word_diff
from caravan_dashboard.markup import Html, facts, join, marked, prose, tag

FINE, POOR = "cv-right", "cv-wrong"


def replies(completions: Sequence[ScoredCompletion | None], marks: bool) -> list[Html]:
    """What the models wrote; of two, with the words marked that the other did not write."""
    texts = [completion.completion if completion else "" for completion in completions]
    if not marks or len(texts) != 2:
        return [prose(text) for text in texts]
    before, after = word_diff(*texts)
    return [marked(before, "rejected"), marked(after, "chosen")]


def answer(label: str, completion: ScoredCompletion | None, text: Html) -> list[Html]:
    name = tag("b", label)
    if completion is None:
        return [name, prose("was not asked this")]
    about: list[tuple[str, object]] = [("", name), ("score", score_mark(completion))]
    if completion.extracted is not None:
        about.append(("extracted", completion.extracted))
    about += [(aspect, value) for aspect, value in (completion.ratings or {}).items() if value]
    if completion.cut_short:
        about.append(("", tag("span", completion.cut_short, class_=POOR)))
    shown = weighed(completion) if completion.log_likelihoods else [text]
    return [facts(about), *(tag("div", part, style="margin-top:.5rem") for part in shown)]


def weighed(completion: ScoredCompletion) -> list[Html]:
    """The options with their share of the probability, the true ones marked."""
    shares = option_shares(completion.log_likelihoods or {})
    shown = []
    for option, share in shares.items():
        kind = FINE if option in completion.ground_truth else POOR
        text = tag("span", option, class_="cv-text")
        shown.append(join([tag("span", f"{share:.1%}", class_=kind), " ", text]))
    return shown


def score_mark(completion: ScoredCompletion) -> object:
    if completion.score is None:
        return "undecided"
    if completion.ratings is not None:
        return f"{completion.score:.2f}"
    return tag("span", f"{completion.score:g}", class_=FINE if completion.score >= 0.5 else POOR)

"""The 25 constraints of IFEval (Zhou et al. 2023, arXiv:2311.07911).

    ground truth: [{"id": "change_case:english_lowercase", "kwargs": {}},
                   {"id": "keywords:existence", "kwargs": {"keywords": ["fox", "river"]}}]
    completion:   "the fox swims across the river."

Score: the share of the constraints that hold. Correct: all of them. `verify` is strict: the
completion as it is. `verify_loose` also accepts it without its first line, its last line, both,
and each of these without asterisks, constraint by constraint, as the benchmark does.

Two ids are ours, `change_case:lowercase` and `change_case:uppercase`: case alone, without asking
a language detector, as in the verifier that trained Tülu 3. They cost a microsecond instead of a
few milliseconds.

Where this departs from the reference: sentences are split by `caravan.verifiers.text`, not NLTK
Punkt; the language detector is seeded, and not asked about plain English; a threshold of 0 stays 0.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from caravan.errors import DataError, require
from caravan.verifiers.text import count_sentences, count_upper_case_tokens, count_words
from caravan.verifiers.verdict import Verdict

Checker = Callable[[str, Mapping[str, Any]], bool]

_HIGHLIGHT = re.compile(r"\*[^\n*]*\*")
_DOUBLE_HIGHLIGHT = re.compile(r"\*\*[^\n*]*\*\*")
_TITLE = re.compile(r"<<[^\n]+>>")
_PLACEHOLDER = re.compile(r"\[.*?\]")
_STAR_BULLET = re.compile(r"^\s*\*[^*].*$", re.MULTILINE)
_DASH_BULLET = re.compile(r"^\s*-.*$", re.MULTILINE)
_DIVIDER = re.compile(r"\s?\*\*\*\s?")
_POSTSCRIPTS = {
    "P.P.S": re.compile(r"p\.\s?p\.\s?s", re.MULTILINE),
    "P.S.": re.compile(r"p\.\s?s\.", re.MULTILINE),
}
_ENGLISH = frozenset(
    """
    the and of to with from that this it its you are for has have had by your what which who they
    their them there these those would could should will not but than then how when where got get
    found made make makes comes came took take good very people like likes each some any into
    about after before because between through while old new two one our we he she his her him
    """.split()  # noqa: SIM905 - a list of eighty strings reads worse
)
"""Words that mark English."""
_ENGLISH_AND_OTHERS = _ENGLISH | frozenset(
    ("a", "an", "in", "is", "was", "on", "at", "as", "be", "all", "so", "no", "do")
)
_LETTERS = re.compile(r"[^\W\d_]+")
_CONSTRAINED = ("My answer is yes.", "My answer is no.", "My answer is maybe.")


@lru_cache(maxsize=8192)
def _pattern(keyword: str, whole_word: bool = False) -> re.Pattern[str]:
    """IFEval takes keywords as patterns; one that is no valid pattern is taken literally."""
    keyword = keyword.strip()
    pattern = rf"\b{keyword}\b" if whole_word else keyword
    try:
        return re.compile(pattern, re.IGNORECASE)
    except re.error:
        escaped = re.escape(keyword)
        return re.compile(rf"\b{escaped}\b" if whole_word else escaped, re.IGNORECASE)


def _holds(count: int, relation: str, threshold: int) -> bool:
    if relation == "at least":
        return count >= threshold
    if relation == "less than":
        return count < threshold
    raise DataError(f"ifeval: relation {relation!r}; there are 'at least' and 'less than'")


def _is_plainly_english(text: str) -> bool:
    """Whether a third of the words are function words of English, some of them its alone."""
    words = _LETTERS.findall(text.lower())
    if len(words) < 4 or not text.isascii():
        return False
    common = sum(word in _ENGLISH_AND_OTHERS for word in words)
    return 3 * common >= len(words) and 8 * sum(word in _ENGLISH for word in words) >= len(words)


def _is_language(text: str, code: str) -> bool:
    """Whether langdetect, seeded, says `code`; a text it cannot judge passes.

    It takes milliseconds and errs on short texts, so it is not asked about plain English.
    """
    if _is_plainly_english(text):
        return code == "en"
    langdetect = require("langdetect", extra="train", feature="a language constraint of IFEval")
    langdetect.DetectorFactory.seed = 0
    try:
        return bool(langdetect.detect(text) == code)
    except langdetect.LangDetectException:
        return True


def _keywords(text: str, args: Mapping[str, Any]) -> bool:
    return all(_pattern(keyword).search(text) for keyword in args["keywords"])


def _keyword_frequency(text: str, args: Mapping[str, Any]) -> bool:
    count = len(_pattern(args["keyword"]).findall(text))
    return _holds(count, args["relation"], args["frequency"])


def _forbidden_words(text: str, args: Mapping[str, Any]) -> bool:
    return not any(_pattern(word, True).search(text) for word in args["forbidden_words"])


def _letter_frequency(text: str, args: Mapping[str, Any]) -> bool:
    count = text.lower().count(args["letter"].strip().lower())
    return _holds(count, args["let_relation"], args["let_frequency"])


def _response_language(text: str, args: Mapping[str, Any]) -> bool:
    return _is_language(text, args["language"])


def _number_sentences(text: str, args: Mapping[str, Any]) -> bool:
    return _holds(count_sentences(text), args["relation"], args["num_sentences"])


def _number_paragraphs(text: str, args: Mapping[str, Any]) -> bool:
    parts = [bool(part.strip()) for part in _DIVIDER.split(text)]
    if not all(parts[1:-1]):
        return False
    return sum(parts) == int(args["num_paragraphs"])


def _number_words(text: str, args: Mapping[str, Any]) -> bool:
    return _holds(count_words(text), args["relation"], args["num_words"])


def _nth_paragraph_first_word(text: str, args: Mapping[str, Any]) -> bool:
    """Counts parts that are not blank, but the index runs over all of them, as in the reference."""
    parts = text.split("\n\n")
    count = sum(1 for part in parts if part.strip())
    nth = args["nth_paragraph"]
    if count != args["num_paragraphs"] or nth > count or not parts[nth - 1].strip():
        return False
    word = parts[nth - 1].split(None, 1)[0].lstrip("'").lstrip('"')
    first = re.split(r"[.,?!'\"]", word, maxsplit=1)[0]
    return bool(first.lower() == args["first_word"].lower())


def _number_placeholders(text: str, args: Mapping[str, Any]) -> bool:
    return len(_PLACEHOLDER.findall(text)) >= int(args["num_placeholders"])


def _postscript(text: str, args: Mapping[str, Any]) -> bool:
    marker = args["postscript_marker"].strip()
    pattern = _POSTSCRIPTS.get(marker) or _pattern(marker.lower())
    return pattern.search(text.lower()) is not None


def _number_bullets(text: str, args: Mapping[str, Any]) -> bool:
    count = len(_STAR_BULLET.findall(text)) + len(_DASH_BULLET.findall(text))
    return bool(count == args["num_bullets"])


def _constrained_response(text: str, args: Mapping[str, Any]) -> bool:
    return any(option in text for option in _CONSTRAINED)


def _number_highlights(text: str, args: Mapping[str, Any]) -> bool:
    count = sum(1 for span in _HIGHLIGHT.findall(text) if span.strip("*").strip())
    count += sum(1 for span in _DOUBLE_HIGHLIGHT.findall(text) if span[2:-2].strip())
    return count >= int(args["num_highlights"])


def _multiple_sections(text: str, args: Mapping[str, Any]) -> bool:
    marker = args["section_spliter"].strip()
    return len(re.findall(rf"\s?{marker}\s?\d+\s?", text)) >= int(args["num_sections"])


def _json_format(text: str, args: Mapping[str, Any]) -> bool:
    text = text.strip()
    for label in ("```json", "```Json", "```JSON", "```"):
        text = text.removeprefix(label)
    try:
        json.loads(text.removesuffix("```").strip())
    except (ValueError, RecursionError):
        return False
    return True


def _title(text: str, args: Mapping[str, Any]) -> bool:
    return any(title.lstrip("<").rstrip(">").strip() for title in _TITLE.findall(text))


def _two_responses(text: str, args: Mapping[str, Any]) -> bool:
    parts = [part.strip() for part in text.split("******")]
    if not all(parts[1:-1]):
        return False
    given = [part for part in parts if part]
    return len(given) == 2 and given[0] != given[1]


def _repeat_prompt(text: str, args: Mapping[str, Any]) -> bool:
    return text.strip().lower().startswith(args["prompt_to_repeat"].strip().lower())


def _end_phrase(text: str, args: Mapping[str, Any]) -> bool:
    return text.strip().strip('"').lower().endswith(args["end_phrase"].strip().lower())


def _quotation(text: str, args: Mapping[str, Any]) -> bool:
    text = text.strip()
    return len(text) > 1 and text[0] == '"' and text[-1] == '"'


def _capital_word_frequency(text: str, args: Mapping[str, Any]) -> bool:
    count = count_upper_case_tokens(text)
    return _holds(count, args["capital_relation"], args["capital_frequency"])


def _english_capital(text: str, args: Mapping[str, Any]) -> bool:
    return text.isupper() and _is_language(text, "en")


def _english_lowercase(text: str, args: Mapping[str, Any]) -> bool:
    return text.islower() and _is_language(text, "en")


def _no_comma(text: str, args: Mapping[str, Any]) -> bool:
    return "," not in text


CONSTRAINTS: dict[str, Checker] = {
    "keywords:existence": _keywords,
    "keywords:frequency": _keyword_frequency,
    "keywords:forbidden_words": _forbidden_words,
    "keywords:letter_frequency": _letter_frequency,
    "language:response_language": _response_language,
    "length_constraints:number_sentences": _number_sentences,
    "length_constraints:number_paragraphs": _number_paragraphs,
    "length_constraints:number_words": _number_words,
    "length_constraints:nth_paragraph_first_word": _nth_paragraph_first_word,
    "detectable_content:number_placeholders": _number_placeholders,
    "detectable_content:postscript": _postscript,
    "detectable_format:number_bullet_lists": _number_bullets,
    "detectable_format:constrained_response": _constrained_response,
    "detectable_format:number_highlighted_sections": _number_highlights,
    "detectable_format:multiple_sections": _multiple_sections,
    "detectable_format:json_format": _json_format,
    "detectable_format:title": _title,
    "combination:two_responses": _two_responses,
    "combination:repeat_prompt": _repeat_prompt,
    "startend:end_checker": _end_phrase,
    "startend:quotation": _quotation,
    "change_case:capital_word_frequency": _capital_word_frequency,
    "change_case:english_capital": _english_capital,
    "change_case:english_lowercase": _english_lowercase,
    "punctuation:no_comma": _no_comma,
    "change_case:lowercase": lambda text, args: text.islower(),
    "change_case:uppercase": lambda text, args: text.isupper(),
}


def check(text: str, constraint: Mapping[str, Any]) -> bool:
    """Whether `text`, as it is, keeps one constraint. A blank text keeps none."""
    checker = CONSTRAINTS.get(constraint["id"])
    if checker is None:
        raise DataError(f"ifeval: unknown constraint {constraint['id']!r}")
    if not text or text.isspace():
        return False
    try:
        return checker(text, constraint.get("kwargs") or {})
    except KeyError as error:
        raise DataError(f"ifeval: {constraint['id']} lacks the argument {error}") from error


def loose_variants(text: str) -> tuple[str, ...]:
    """The eight forms under which a completion is accepted loosely."""
    lines = text.split("\n")
    plain = (text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])))
    return plain + tuple(variant.replace("*", "") for variant in plain)


def verify(completion: str, ground_truth: Sequence[Mapping[str, Any]]) -> Verdict:
    """Strict: each constraint against the completion as it is."""
    return _verdict([check(completion, constraint) for constraint in ground_truth])


def verify_loose(completion: str, ground_truth: Sequence[Mapping[str, Any]]) -> Verdict:
    """Loose: each constraint against any of eight forms of the completion."""
    variants = loose_variants(completion)
    return _verdict([any(check(v, constraint) for v in variants) for constraint in ground_truth])


def _verdict(kept: list[bool]) -> Verdict:
    if not kept:
        raise DataError("ifeval: the ground truth names no constraint")
    score = sum(kept) / len(kept)
    return Verdict(score == 1.0, score, f"{sum(kept)} of {len(kept)}")

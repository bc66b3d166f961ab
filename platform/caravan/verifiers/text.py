"""Words, tokens and sentences, as the IFEval constraints count them. No dependency, no data files.

Tokens follow NLTK's `word_tokenize` closely enough to count upper-case ones. Sentences stand for
NLTK's Punkt model, whose data must be downloaded: one splitter that is the same on every machine
was worth more than the last per cent of agreement (measured in tests/verifiers/test_text.py).
"""

from __future__ import annotations

import re

_WORD = re.compile(r"\w+")


def count_words(text: str) -> int:
    return len(_WORD.findall(text))


# --- tokens -------------------------------------------------------------------------------------

_TOKEN = re.compile(r"[^\s«»“”‘’„`\"\u2012-\u2015;@#$%&?!*()\[\]{}<>]+")
_CLITIC = re.compile(r"(?<=[^'\s])('S|'M|'D|'LL|'RE|'VE|N'T|')$", re.IGNORECASE)
_INNER = re.compile(r"--|\.{2,}|[:,](?=[^0-9]|$)")


def count_upper_case_tokens(text: str) -> int:
    """Tokens of `text` that are all upper-case: `I'M` is two, `WELL-KNOWN` one."""
    if not any(character.isupper() for character in text):
        return 0
    count = 0
    for run in _TOKEN.findall(text):
        if not any(character.isupper() for character in run):
            continue
        for part in _INNER.split(run):
            clitic = _CLITIC.search(part)
            if clitic is not None:
                count += clitic.group().isupper()
                part = part[: clitic.start()]
            if part == "CANNOT":
                count += 1
            count += part.lstrip("'").isupper()
    return count


# --- sentences ----------------------------------------------------------------------------------

_BOUNDARY = re.compile(r"([.!?\u3002\uff1f\uff01]+)([\"')\]}*”’»_`]*)(\s+|$)")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ABBREVIATIONS = _words(
    """
    mr mrs ms messrs dr prof st jr sr rev hon gen col lt sgt capt maj cmdr gov sen rep pres supt
    vs etc e.g i.e cf al viz inc ltd co corp bros assn dept univ est approx appt apt ave blvd rd
    jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thur thurs fri sat fig
    figs vol vols pp ed eds a.m p.m u.s u.k u.n d.c ph.d m.d b.a m.a b.s m.s b.sc m.sc a.d b.c
    n.y l.a u.s.a
    """
)
_STARTERS = _words(
    """
    a after all also although an and as at because before besides both but by despite during
    each finally first for from given he her here hence his how however i if in instead is it
    its last later let many maybe meanwhile moreover my no not now of on once one or our perhaps
    second she since so some soon still such that the their then there therefore these they this
    those though thus to today under until we what when where whether which while who why with
    yes yet you your
    """
)


def count_sentences(text: str) -> int:
    """Sentences of `text`; what is left after the last full stop counts as one."""
    count = 0
    start = 0
    for match in _BOUNDARY.finditer(text):
        following = text[match.end() : match.end() + 32]
        if _ends_sentence(text, match, following) and text[start : match.end()].strip():
            count += 1
            start = match.end()
    return count + bool(text[start:].strip())


def _ends_sentence(text: str, match: re.Match[str], following: str) -> bool:
    mark = match.group(1)
    if mark.strip(".") or not following:  # holds ! or ?, or ends the text
        return True
    next_word = following.split(None, 1)[0].lstrip("\"'([{*“‘«_`")
    next_upper = next_word[:1].isupper()
    if len(mark) > 1:  # an ellipsis
        return next_upper
    word = _word_before(text, match.start())
    if len(word) == 1 and word.isalpha() and word != "I":  # an initial
        return not next_upper or next_word.strip(",;:").lower() in _STARTERS
    if word.lower() in _ABBREVIATIONS:
        if following[0] in "<*":  # Punkt breaks before the markup of "i.e. <<title>>"
            return True
        return next_upper and next_word.strip(",;:").lower() in _STARTERS
    if word.isdigit():
        return not next_word[:1].islower()
    return True


def _word_before(text: str, end: int) -> str:
    start = end
    while start > 0 and not text[start - 1].isspace() and end - start < 24:
        start -= 1
    return text[start:end].lstrip("\"'([{*“‘«_`-")

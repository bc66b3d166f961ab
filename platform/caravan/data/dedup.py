"""Exact and near duplicates. The first of several stays; each one dropped names the one it repeats.

Exact duplicates are whole conversations that agree after case folding and collapsing white space.
Near duplicates are rows whose prompts and whose replies each have sets of word 5-grams with a
Jaccard similarity of at least a threshold, so that several replies to one prompt all stay. MinHash
with banding (Broder 1997; Leskovec, Rajaraman and Ullman, chapter 3) proposes candidates; the
similarity that decides, and that is reported, is the exact one.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from caravan.data.records import Conversation, Message

Hashes = npt.NDArray[np.uint64]

SHINGLE_WORDS = 5
PERMUTATIONS = 128
REPLY = np.uint64(0xA5A5A5A5A5A5A5A5)
"""Makes a reply's hashes others than those of the same words in a prompt."""
RECALL = 0.995
"""Probability that a pair exactly at the threshold becomes a candidate; above it, higher."""
REMEMBERED_WORDS = 100_000


@dataclass(frozen=True)
class Duplicate:
    """A row that repeats an earlier one."""

    of: str
    """Id of the row that stays."""
    similarity: float
    """Jaccard similarity of the word 5-grams of the prompts or of the replies, whichever is less;
    1 for an exact duplicate."""


def normalise(text: str) -> str:
    """Compatibility characters, case and white space made equal."""
    return " ".join(_words(text))


def _words(text: str) -> list[str]:
    return unicodedata.normalize("NFKC", text).casefold().split()


def text_of(messages: Sequence[Message]) -> str:
    """What two prompts, or two replies, are compared by: their messages, one after another."""
    return "\n".join(message.content for message in messages)


class ExactDuplicates:
    """Remembers the conversations it has seen, 16 bytes each."""

    def __init__(self) -> None:
        self._seen: dict[bytes, str] = {}

    def find_or_add(self, row: Conversation) -> Duplicate | None:
        """The earlier conversation that `row` repeats; remembers `row` if there is none."""
        digest = hashlib.blake2b(digest_size=16)
        for message in row.messages:
            digest.update(f"{message.role}\x00{normalise(message.content)}\x00".encode())
        earlier = self._seen.setdefault(digest.digest(), row.id)
        return None if earlier == row.id else Duplicate(earlier, 1.0)


@dataclass(frozen=True)
class _Shingles:
    prompt: Hashes
    reply: Hashes

    @property
    def both(self) -> Hashes:
        """As one set, in which a prompt and a reply share nothing. Rows that are similar in both
        parts are at least as similar in the whole."""
        return np.concatenate([self.prompt, self.reply ^ REPLY])

    def similarity(self, other: _Shingles) -> float:
        return min(jaccard(self.prompt, other.prompt), jaccard(self.reply, other.reply))


class NearDuplicates:
    """Remembers rows by the hashes of their 5-grams, and finds earlier ones that are similar."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._rows_per_band = rows_per_band(threshold)
        generator = np.random.default_rng(20_241_122)  # any fixed number: results must not vary
        numbers = generator.integers(0, 2**64, size=(2, PERMUTATIONS), dtype=np.uint64)
        self._factors, self._offsets = numbers[0] | np.uint64(1), numbers[1]
        self._buckets: list[dict[bytes, list[int]]] = [
            {} for _ in range(PERMUTATIONS // self._rows_per_band)
        ]
        self._ids: list[str] = []
        self._shingles: list[_Shingles] = []

    def find_or_add(self, id: str, prompt: str, reply: str = "") -> Duplicate | None:
        """The most similar earlier row at or above the threshold; remembers this one if none."""
        shingles = _Shingles(shingle_hashes(prompt), shingle_hashes(reply))
        both = shingles.both
        if not len(both):
            return None
        bands = self._bands(both)
        candidates = sorted(
            {
                n
                for bucket, key in zip(self._buckets, bands, strict=True)
                for n in bucket.get(key, ())
            }
        )
        similar = [(shingles.similarity(self._shingles[n]), -n) for n in candidates]
        if similar and max(similar)[0] >= self._threshold:
            similarity, number = max(similar)
            return Duplicate(self._ids[-number], similarity)
        for bucket, key in zip(self._buckets, bands, strict=True):
            bucket.setdefault(key, []).append(len(self._ids))
        self._ids.append(id)
        self._shingles.append(shingles)
        return None

    def _bands(self, shingles: Hashes) -> list[bytes]:
        """The MinHash signature, cut into bands."""
        # Multiply-shift hashing: the high half of a product modulo 2^64 is close to random.
        hashed = shingles[:, None] * self._factors
        hashed += self._offsets
        signature = (hashed.min(axis=0) >> np.uint64(32)).astype(np.uint32).tobytes()
        width = self._rows_per_band * np.dtype(np.uint32).itemsize
        return [signature[i * width : (i + 1) * width] for i in range(len(self._buckets))]


def rows_per_band(threshold: float) -> int:
    """The most selective banding that still finds a pair at `threshold` with `RECALL`."""
    for rows in range(PERMUTATIONS, 1, -1):
        if 1 - (1 - threshold**rows) ** (PERMUTATIONS // rows) >= RECALL:
            return rows
    return 1


def jaccard(a: Hashes, b: Hashes) -> float:
    """Shared elements over all elements of two sets, given as arrays without repeats; 1 where both
    are empty."""
    if not len(a) and not len(b):
        return 1.0
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


def shingle_hashes(text: str) -> Hashes:
    """Hashes of the distinct word 5-grams, sorted; a shorter text is one shingle, an empty none."""
    words = np.frombuffer(b"".join(map(_HASHES.__getitem__, _words(text))), dtype="<u8")
    width = min(SHINGLE_WORDS, len(words))
    if not width:
        return words
    combined = np.zeros(len(words) - width + 1, dtype=np.uint64)
    for k in range(width):
        # Mixed after every word, so that the order of the words counts.
        combined = (combined + words[k : k + len(combined)]) * np.uint64(0x9E3779B97F4A7C15)
        combined ^= combined >> np.uint64(29)
    combined.sort()
    first = np.ones(len(combined), dtype=np.bool_)
    np.not_equal(combined[1:], combined[:-1], out=first[1:])
    return combined[first]


class _WordHashes(dict[str, bytes]):
    """Hashes of words, 8 bytes each; forgotten where they have become too many."""

    def __missing__(self, word: str) -> bytes:
        if len(self) == REMEMBERED_WORDS:
            self.clear()
        self[word] = hashed = hashlib.blake2b(word.encode(), digest_size=8).digest()
        return hashed


_HASHES = _WordHashes()

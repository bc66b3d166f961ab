"""What the checks of a dry run find, for those that come after them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from caravan.data.records import Conversation, EvalInstance, Pair
from caravan.errors import some
from caravan.recipe import ImportedBase, Recipe

SAMPLE_CHARACTERS = 4_000
"""Of a message, for a tokenizer like the one that the run will train."""


class NothingToCheckError(Exception):
    """What a check looks at is what an earlier one failed to read."""


@dataclass
class Seen:
    recipe: Recipe
    recipe_dir: Path
    failed: list[str] = field(default_factory=list)
    """Titles of the checks that failed."""
    rows: list[Conversation] = field(default_factory=list)
    """The first ones of each source."""
    trainable: Counter[str] = field(default_factory=Counter)
    """Rows that RLVR takes, by skill: those with a verifier and a ground truth, or all."""
    pairs: list[Pair] = field(default_factory=list)
    """The first ones of each source of pairs."""
    instances: dict[str, list[EvalInstance]] = field(default_factory=dict)
    """Of each task whose questions could be read."""

    @property
    def answered(self) -> list[Conversation]:
        return [row for row in self.rows if row.has_reply]

    def needs(self, what: str) -> None:
        """
        Raises:
            NothingToCheckError: a check failed whose title begins with `what`.
        """
        if failed := [title for title in self.failed if title.startswith(f"{what} ")]:
            raise NothingToCheckError(f"not checked, as {some(failed)} failed")

    @cached_property
    def tokenizer(self) -> Any:
        """The base model's, or one like the one that the run will train."""
        from caravan.training.bpe import train_tokenizer
        from caravan.training.importing import check_import, find_model

        base = self.recipe.base_model
        if isinstance(base, ImportedBase):
            return check_import(find_model(base, self.recipe_dir)).tokenizer
        texts = [message.content for row in self.rows for message in row.messages]
        for pair in self.pairs:
            texts += [*(message.content for message in pair.prompt), pair.chosen, pair.rejected]
        # Training a tokenizer takes time that grows with the square of the longest word.
        return train_tokenizer(
            [text[:SAMPLE_CHARACTERS] for text in texts],
            vocab_size=base.vocab_size,
            model_max_length=base.max_position_embeddings,
        )

"""A tokenizer that knows single characters, a real one."""

from __future__ import annotations

import string
from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers


def character_tokenizer(special: Sequence[str], characters: str = string.printable) -> Tokenizer:
    """Tokens are `special`, with `<unk>` among them, then the characters, in this order."""
    vocabulary = {token: i for i, token in enumerate([*special, *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer

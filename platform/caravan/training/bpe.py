"""A byte-level BPE tokenizer trained on text: every string round-trips, digits stand alone."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from caravan.errors import DataError

PAD = "<pad>"
END = "<|endoftext|>"
BYTES = 256


def train_tokenizer(
    texts: Iterable[str], *, vocab_size: int, model_max_length: int, split_digits: bool = True
) -> PreTrainedTokenizerFast:
    """Train on `texts`; the vocabulary is smaller than `vocab_size` where they have too few words.

    Raises:
        DataError: `vocab_size` has no room for the bytes and the special tokens.
    """
    special = [PAD, END]
    if vocab_size < BYTES + len(special):
        raise DataError(
            f"vocab_size={vocab_size} is too small: {BYTES} bytes and {len(special)} special "
            f"tokens need at least {BYTES + len(special)}"
        )
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    # Digits one by one: numbers of any length are written with ten tokens, which learns to count.
    digits = [pre_tokenizers.Digits(individual_digits=True)] if split_digits else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        model_max_length=model_max_length,
        clean_up_tokenization_spaces=False,
    )

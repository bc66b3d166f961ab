"""Base models from outside: found, checked, and given what training needs."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from caravan.data.template import TEMPLATE_HASH
from caravan.data.template import chat_template as our_template
from caravan.data.template_stamp import (
    SHOWN,
    TEMPLATE_FILE,
    check_template,
    renders_as_ours,
    write_stamp,
)
from caravan.errors import DataError, require
from caravan.inference.prompt_format import PromptFormat, prompt_format
from caravan.recipe import ChatTemplate, ImportedBase
from caravan.recipe.paths import is_hub_name, model_directory
from caravan.training.bpe import PAD
from caravan.training.models import check_model_directory, read_weights, save_model

logger = logging.getLogger(__name__)

KEPT = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
"""Weights, configs, templates and vocabularies: what a model directory is copied with."""
EMBEDDING_MULTIPLE = 8
"""Embedding rows are filled up to this, as Tülu 3 did (128,264 rows of Llama 3.1)."""


def find_model(config: ImportedBase, recipe_dir: Path) -> Path:
    """The directory that `model_name_or_path` names; downloaded where it names a hub's model.

    Raises:
        DataError: there is no such directory and no such model.
    """
    name = config.model_name_or_path
    directory = model_directory(name, recipe_dir)
    if directory.is_dir():
        return directory
    if not is_hub_name(name):
        raise DataError(f"{directory}: no such directory; set base_model.model_name_or_path")
    hub = require("huggingface_hub", extra="train", feature=f"downloading {name}")
    try:
        return Path(
            hub.snapshot_download(name, revision=config.revision, allow_patterns=list(KEPT))
        )
    except Exception as error:  # the client raises many kinds, of three libraries
        if hub.is_offline_mode():
            raise DataError(
                f"{name} is not a directory under {recipe_dir}, and not in the hub's local cache"
            ) from error
        raise DataError(
            f"{name} is not a directory under {recipe_dir} and cannot be downloaded: {error}"
        ) from error


def import_model(
    source: Path,
    target: Path,
    *,
    chat_template: ChatTemplate | None = None,
    will_be_tuned: bool = True,
) -> int:
    """Copy the model in `source` to `target`; gives how many tokens had to be added.

    It keeps a chat template of its own, in which it is asked, and is marked as one to be trained in
    ours; without one, it gets ours. A model that will not be tuned has to know ours.

    A model whose tokenizer has a pad token other than its end token is copied byte for byte,
    besides the chat template. Any other is given `<pad>` and embeddings for it, in its own
    precision.

    Args:
        chat_template: What it is asked in, as a recipe says it.

    Raises:
        DataError: `source` holds no model, pickled weights, no end token, or a model of another
            chat template that will not be tuned.
        EngineError: the model has not the chat template that is asked for.
    """
    tokenizer, asked, notes = check_import(source, chat_template, will_be_tuned=will_be_tuned)
    for note in notes:
        logger.warning("%s: %s", source, note)
    lacks_pad = _lacks_pad(tokenizer)
    if lacks_pad:
        _add_pad(source, tokenizer, target, keep_ends=asked.own is not None)
    else:
        files = sorted({path for pattern in KEPT for path in source.glob(pattern)})
        target.mkdir(parents=True, exist_ok=True)
        for path in files:
            shutil.copyfile(path, target / path.name)
    (target / TEMPLATE_FILE).write_text(asked.own or our_template(tokenizer), encoding="utf-8")
    if asked.own is not None:
        write_stamp(target, TEMPLATE_HASH)
    return int(lacks_pad)


class Importable(NamedTuple):
    tokenizer: PreTrainedTokenizerBase
    asked: PromptFormat
    notes: tuple[str, ...]
    """What will be changed, in words."""


def check_import(
    source: Path, chat_template: ChatTemplate | None = None, *, will_be_tuned: bool = True
) -> Importable:
    """Everything that `import_model` would find wrong, without reading the weights.

    Raises:
        DataError, EngineError: as `import_model`.
    """
    check_model_directory(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
    except (OSError, ValueError) as error:
        raise DataError(f"{source}: no tokenizer can be loaded: {error}") from error
    if tokenizer.eos_token_id is None:
        raise DataError(f"{source}: the tokenizer has no end token; set eos_token")
    notes = []
    if _lacks_pad(tokenizer):
        notes.append(f"its tokenizer has no pad token of its own, so {PAD} is added")
    foreign = tokenizer.chat_template is not None and not renders_as_ours(tokenizer)
    if foreign and not will_be_tuned:
        check_template(source)
    asked = prompt_format(tokenizer, chat_template)
    if asked.own is not None:
        notes.append(
            f"it is asked in {asked}; what is trained from it is asked in the Tülu chat template "
            f"({TEMPLATE_HASH[:SHOWN]}), which nothing but SFT teaches it"
        )
    elif foreign:
        notes.append(
            f"it has a chat template of its own, but is asked in {asked}, which it knows once SFT "
            "has taught it"
        )
    return Importable(tokenizer, asked, tuple(notes))


def check_reward_model(source: Path) -> None:
    """Refuse a model that no completion can be scored with, without reading the weights.

    Raises:
        DataError: it has another head than one for sequence classification, or several labels.
    """
    check_model_directory(source)
    config = _config(source)
    if not _classifies(config):
        kinds = ", ".join(config.architectures or ()) or "nothing"
        raise DataError(
            f"{source}: config.json says {kinds} under architectures, so this is no reward model; "
            "give one with a head for sequence classification"
        )
    if config.num_labels != 1:
        raise DataError(f"{source}: a reward model has one label, not {config.num_labels}")


def outline(source: Path) -> PreTrainedModel:
    """The model in `source` with no memory for weights: what layers it has.

    Raises:
        DataError: config.json cannot be read.
    """
    config = _config(source)
    with torch.device("meta"):
        return cast(PreTrainedModel, _kind(config).from_config(config))


def _config(source: Path) -> PretrainedConfig:
    try:
        return AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{source}: config.json cannot be read: {error}") from error


def _classifies(config: PretrainedConfig) -> bool:
    return any(kind.endswith("ForSequenceClassification") for kind in config.architectures or ())


def _kind(config: PretrainedConfig) -> Any:
    """One of transformers' `Auto` classes."""
    return AutoModelForSequenceClassification if _classifies(config) else AutoModelForCausalLM


def _lacks_pad(tokenizer: PreTrainedTokenizerBase) -> bool:
    return tokenizer.pad_token_id in (None, tokenizer.eos_token_id)


def _add_pad(
    source: Path, tokenizer: PreTrainedTokenizerBase, target: Path, *, keep_ends: bool
) -> None:
    model = read_weights(_kind(_config(source)), source, dtype="auto")
    tokenizer.add_special_tokens({"pad_token": PAD})
    known = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > known:
        model.resize_token_embeddings(
            len(tokenizer), pad_to_multiple_of=EMBEDDING_MULTIPLE, mean_resizing=False
        )
        with torch.no_grad():
            for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
                if layer is not None:  # a reward model's head has no row for each token
                    layer.weight[known:] = layer.weight[:known].mean(dim=0)
    ends = model.generation_config.eos_token_id if keep_ends else None
    save_model(model, tokenizer, target)
    if keep_ends:  # its own template may end turns with others than the tokenizer's end token
        model.generation_config.eos_token_id = ends
        model.generation_config.save_pretrained(target)

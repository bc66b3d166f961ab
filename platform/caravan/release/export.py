"""Models as plain Hugging Face directories that transformers and vLLM load.

An artifact is one already, but for what is known after training only: the card, and how the model
is to be sampled.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from caravan.data.template_stamp import STAMP
from caravan.errors import CaravanError, DataError
from caravan.recipe import RLVRConfig
from caravan.registry import Registry
from caravan.release.card import model_card
from caravan.release.facts import ModelFacts, model_facts
from caravan.store import Store
from caravan.store.copies import copy_out

README = "README.md"
TEMPLATE = "chat_template.jinja"
Dtype = Literal["float32", "bfloat16", "float16"]


def export_model(
    digest: str,
    target: Path,
    registry: Registry,
    store: Store,
    *,
    run_id: str = "",
    dtype: Dtype | None = None,
) -> None:
    """Write the model with this digest into `target`, which must not exist.

    Args:
        run_id: the run whose lineage and scores the card tells.
        dtype: precision of the weights; None keeps that of the artifact.

    Raises:
        CaravanError: the target is there, the artifact is no model, or it cannot be chatted with.
    """
    if os.path.lexists(target):
        raise CaravanError(f"{target} exists; name a directory that does not")
    facts = model_facts(digest, registry, store, run_id)
    source = store.fetch(digest)
    template = template_of(source)
    _make_directory(target.parent)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as aside:
        directory = Path(aside) / "model"
        if dtype is None:
            copy_out(source, directory)
        else:
            _convert(source, directory, dtype)
        generation = _generation_config(directory, facts)
        (directory / "generation_config.json").write_text(_json(generation))
        (directory / TEMPLATE).write_text(template)
        (directory / README).write_text(card_of(facts, template))
        (directory / STAMP).unlink(missing_ok=True)  # what stages here would train it in
        directory.rename(target)


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CaravanError(
            f"cannot export into {directory}: {error.strerror}; name a place that is a directory, "
            "or can be made one"
        ) from error


def card_of(facts: ModelFacts, template: str) -> str:
    return model_card(facts, template_hash=hashlib.sha256(template.encode()).hexdigest())


def template_of(directory: Path) -> str:
    """The chat template of a model directory.

    Raises:
        DataError: it has none.
    """
    path, config = directory / TEMPLATE, directory / "tokenizer_config.json"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    found = json.loads(config.read_text()).get("chat_template") if config.is_file() else None
    if not isinstance(found, str):
        raise DataError(f"{directory}: the model has no chat template, so nothing can talk to it")
    return found


def _generation_config(directory: Path, facts: ModelFacts) -> dict[str, Any]:
    """Special tokens and, for a model that RLVR has sampled from, how it did.

    Nothing limits the length of a reply: servers would take that for every request's default.

    Raises:
        DataError: the model has no end token.
    """
    path = directory / "generation_config.json"
    found = json.loads(path.read_text()) if path.is_file() else {}
    config = json.loads((directory / "config.json").read_text())
    names = ("bos_token_id", "eos_token_id", "pad_token_id")
    made: dict[str, Any] = {
        name: source[name]
        for source in (config, found)
        for name in names
        if source.get(name) is not None
    }
    if "eos_token_id" not in made:
        raise DataError(f"{directory}: neither config nor generation config has an end token")
    if any(stage.stage == "rlvr" for stage in facts.before):
        sampling = RLVRConfig.model_validate(facts.run.recipe["rlvr"]).sampling
        made |= {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p}
    return made


def _convert(source: Path, target: Path, dtype: Dtype) -> None:
    import torch

    from caravan.training.merging import convert

    convert(source, target, getattr(torch, dtype))


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, sort_keys=True) + "\n"

"""Whether the models that a recipe names can be trained or read, in the memory that there is."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from caravan.errors import DataError, RecipeError
from caravan.recipe import ImportedBase, LoRAConfig, PretrainedBase, Recipe, TrainingConfig
from caravan_pipelines.dry_run.seen import Seen

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BYTES_PER_PARAMETER = 16
"""Weights, gradients and Adam's two moments in float32."""
GIB = 2**30


def base_model(base: ImportedBase, recipe_dir: Path) -> str:
    from caravan.training.importing import check_import, find_model

    source = find_model(base, recipe_dir)
    checked = check_import(source, base.chat_template)
    return "; ".join([base.model_name_or_path, *checked.notes])


def reward_model(existing: ImportedBase, recipe: Recipe, recipe_dir: Path) -> str:
    from caravan.training.importing import check_import, check_reward_model, find_model
    from caravan.training.models import check_reads_tokens_of

    directory = find_model(existing, recipe_dir)
    check_reward_model(directory)
    base, found = recipe.base_model, check_import(directory, will_be_tuned=False)
    if recipe.rlvr and recipe.rlvr.reads_reward_model and isinstance(base, ImportedBase):
        policy = check_import(find_model(base, recipe_dir)).tokenizer
        check_reads_tokens_of(policy, found.tokenizer, directory)
    return "; ".join([existing.model_name_or_path, *found.notes])


def adapters(name: str, lora: LoRAConfig, seen: Seen) -> str:
    """Which layers of the models that the stage `name` trains get adapters."""
    from caravan.training.adapters import adapted_layers

    layers: dict[str, None] = {}
    for model in _outlines(name, seen):
        try:
            layers |= {layer.rpartition(".")[2]: None for layer in adapted_layers(model, lora)}
        except DataError as error:
            raise DataError(f"{name}.{error}") from error
    return ", ".join(layers)


def _outlines(name: str, seen: Seen) -> Iterator[PreTrainedModel]:
    """The models that the stage `name` trains, without weights."""
    import torch

    from caravan.training.importing import find_model, outline
    from caravan.training.pretrain import new_llama

    recipe, base = seen.recipe, seen.recipe.base_model
    if isinstance(base, ImportedBase):
        yield outline(find_model(base, seen.recipe_dir))
    else:
        with torch.device("meta"):
            yield new_llama(base, seen.tokenizer)
    existing = recipe.reward_model.model_name_or_path if recipe.reward_model else None
    if name == "rlvr" and recipe.rlvr and recipe.rlvr.algorithm.kind == "ppo" and existing:
        value = ImportedBase(model_name_or_path=existing)
        yield outline(find_model(value, seen.recipe_dir))


def lengths(trained: Mapping[str, TrainingConfig], recipe: Recipe, recipe_dir: Path) -> str:
    """No stage may train on rows that are longer than the model can read."""
    positions = positions_of_base(recipe, recipe_dir)
    lengths = {name: stage.max_length for name, stage in trained.items()}
    for name, length in lengths.items():
        if length > positions and name != "rlvr":  # which takes the smaller of the two
            raise RecipeError(
                f"{name}.max_length={length} is more than the {positions} positions of the base "
                f"model; set it to at most {positions}"
            )
    return ", ".join(f"{name} {length:,}" for name, length in lengths.items()) + " tokens at most"


def positions_of_base(recipe: Recipe, recipe_dir: Path) -> int:
    """Of the base model."""
    from caravan.inference.engine import positions_in
    from caravan.training.importing import find_model
    from caravan.training.models import check_model_directory

    base = recipe.base_model
    if isinstance(base, PretrainedBase):
        return base.max_position_embeddings
    directory = find_model(base, recipe_dir)
    check_model_directory(directory)
    return positions_in(directory)


def memory(stage: TrainingConfig, recipe: Recipe, recipe_dir: Path) -> str:
    """A lower bound: what full training in float32 holds of every parameter, without activations.

    Sharding over the processes of a node is taken as even.
    """
    parameters = _parameters(recipe, recipe_dir)
    resources = stage.resources
    needed = parameters * BYTES_PER_PARAMETER / GIB / max(1, resources.nodes * resources.gpus)
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    if not resources.gpus and needed > available:
        raise RecipeError(
            f"{parameters:,} parameters need {needed:.1f} GiB to train, and this machine has "
            f"{available:.1f} GiB; use a smaller base model or a larger machine"
        )
    where = "on each GPU" if resources.gpus else f"of this machine's {available:.1f} GiB"
    return f"{parameters:,} parameters, {needed:.2f} GiB {where} before activations"


def _parameters(recipe: Recipe, recipe_dir: Path) -> int:
    base = recipe.base_model
    if isinstance(base, PretrainedBase):
        attention = 4 * base.hidden_size**2
        layer = attention + 3 * base.hidden_size * base.intermediate_size
        return base.num_hidden_layers * layer + base.vocab_size * base.hidden_size
    from safetensors import safe_open

    from caravan.training.importing import find_model

    total = 0
    for path in find_model(base, recipe_dir).glob("*.safetensors"):
        with safe_open(path, framework="pt") as tensors:
            shapes = (tensors.get_slice(key).get_shape() for key in tensors.keys())  # noqa: SIM118  # no dict
            total += sum(prod(shape) for shape in shapes)
    return total

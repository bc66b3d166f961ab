"""From what a recipe says to an engine that answers. Imports the heavy parts only when asked."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from caravan.inference.engine import Engine, positions_in
from caravan.recipe import (
    EngineConfig,
    OpenAIEngineConfig,
    ProgramEngineConfig,
    TransformersEngineConfig,
    VLLMEngineConfig,
)
from caravan.recipe.paths import model_directory


def load_engine(
    config: EngineConfig | Path,
    *,
    batch_size: int = 64,
    kind: Literal["transformers", "vllm"] = "transformers",
    tensor_parallel_size: int = 1,
    max_model_len: int | None = None,
    recipe_dir: Path | None = None,
    special_tokens: bool = False,
) -> Engine:
    """The engine that `config` describes, or one of `kind` for a model directory.

    Args:
        batch_size: Sequences decoded at once by a transformers engine of a model directory.
        tensor_parallel_size: GPUs that a vllm engine of a model directory is divided over.
        max_model_len: Tokens of prompt and reply that a vllm engine of a model directory has room
            for, if the model has; None takes the default of `VLLMEngineConfig`.
        recipe_dir: Where a relative `model_name_or_path` is looked for first.
        special_tokens: Ask in the Tülu template, where the spelling of a special token in a prompt
            is that token, as in prompts that frame what others wrote; an endpoint decides this for
            itself.

    Raises:
        EngineError: the model or the endpoint cannot be used as described.
        MissingExtraError: a package that this engine needs is not installed.
    """
    if isinstance(config, Path):
        if kind == "vllm":
            length = {}
            if max_model_len is not None:
                length["max_model_len"] = min(max_model_len, positions_in(config))
            config = VLLMEngineConfig(
                model_name_or_path=str(config), tensor_parallel_size=tensor_parallel_size, **length
            )
        else:
            config = TransformersEngineConfig(model_name_or_path=str(config), batch_size=batch_size)
    match config:
        case TransformersEngineConfig():
            from caravan.inference.transformers_engine import TransformersEngine

            model = _resolve(config.model_name_or_path, recipe_dir)
            return TransformersEngine.from_pretrained(
                model,
                batch_size=config.batch_size,
                chat_template=config.chat_template,
                special_tokens=special_tokens,
            )
        case VLLMEngineConfig():
            from caravan.inference.vllm_engine import VLLMEngine

            model = _resolve(config.model_name_or_path, recipe_dir)
            return VLLMEngine(
                config.derive(model_name_or_path=model), special_tokens=special_tokens
            )
        case OpenAIEngineConfig():
            from caravan.inference.openai_engine import OpenAIEngine

            return OpenAIEngine(config)
        case ProgramEngineConfig():
            from caravan.inference.program_engine import ProgramEngine

            return ProgramEngine.named(config.program)


def unload(engine: Engine) -> None:
    """Give back the memory of an engine's model, so that another model finds room.

    The engine cannot be used again.
    """
    if close := getattr(engine, "close", None):  # an endpoint holds no model
        close()


def _resolve(model_name_or_path: str, recipe_dir: Path | None) -> str:
    """A directory beside the recipe where there is one, else the name as it stands."""
    directory = model_directory(model_name_or_path, recipe_dir or Path())
    return str(directory) if directory.is_dir() else model_name_or_path

"""Whether what a run needs around it is there: registry, store, engines, verifiers, packages."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from caravan.errors import MissingExtraError, RecipeError, missing_extra
from caravan.recipe import (
    OpenAIEngineConfig,
    Recipe,
    TrainingConfig,
    TransformersEngineConfig,
    VLLMEngineConfig,
)
from caravan.recipe.paths import model_directory
from caravan.settings import Settings


def registry(settings: Settings) -> str:
    from caravan.registry import Registry

    with Registry(settings.resolved_registry_url) as registry:
        return registry.url


def store(settings: Settings) -> str:
    from caravan.store import open_store
    from caravan_pipelines.launch.local import check_writable

    store = open_store(settings.resolved_store_url, settings)
    check_writable(store)
    return store.url


def has_key(engine: OpenAIEngineConfig) -> str:
    """An endpoint without a key is asked without one: only a key that is known to be needed is
    missed."""
    variable = engine.api_key_env
    where = f"{engine.model} at {engine.base_url}"
    if os.environ.get(variable):
        return f"{where}, key in {variable}"
    if urlsplit(engine.base_url).hostname == "api.openai.com":
        raise RecipeError(f"the environment variable {variable} is not set, and it asks for a key")
    if "api_key_env" in engine.model_fields_set:
        raise RecipeError(
            f"the environment variable {variable}, which the recipe names, is not set; set it, or "
            "leave api_key_env out where the endpoint needs no key"
        )
    return f"{where}, without a key: {variable} is not set"


def asked(
    name: str,
    engine: TransformersEngineConfig | VLLMEngineConfig,
    recipe: Recipe,
    recipe_dir: Path,
) -> str:
    """What the engine's model is asked in."""
    from caravan.training.importing import check_import

    if isinstance(engine, VLLMEngineConfig) and find_spec("vllm") is None:
        raise RecipeError("vllm is not installed: pip install 'caravan[vllm]'")
    safety = recipe.evaluate.safety_judge if recipe.evaluate else None
    classifies = safety is not None and safety.engine == name
    chosen = "tulu" if classifies else engine.chat_template
    model = engine.model_name_or_path
    directory = model_directory(model, recipe_dir)
    if directory.is_dir():
        return f"{model}, asked in {check_import(directory, chosen).asked}"
    if chosen == "tulu":
        return f"{model}, asked in the Tülu chat template"
    where_none = "" if chosen == "model" else ", or that of Tülu where it has none"
    return f"{model} of the hub, asked in its own chat template{where_none}"


def verifiers(recipe: Recipe, recipe_dir: Path) -> str:
    from caravan.verifiers import own_verifiers

    with own_verifiers(recipe.verifiers, recipe_dir) as started:
        return f"{', '.join(started)} can be imported"


def packages(trained: Mapping[str, TrainingConfig], recipe: Recipe) -> str:
    from caravan.stages.extras import check_extras

    asking = {"respond": recipe.respond, "evaluate": recipe.evaluate}
    for name, asks in asking.items():
        if asks is not None and asks.engine == "vllm" and find_spec("vllm") is None:
            raise MissingExtraError(missing_extra("vllm", "vllm", f"{name}.engine: vllm"))
    for name, stage in trained.items():
        try:
            check_extras(stage, several=stage.resources.training_processes > 1)
        except MissingExtraError as error:
            raise MissingExtraError(f"{name}: {error}") from error
    return "those that the stages' options need are installed"

"""Whether the hub answers, asked once: its clients try again for half a minute at every name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from caravan.recipe import HubSource, ImportedBase, Recipe
from caravan.recipe.paths import model_directory

PROBE_SECONDS = 5.0


@contextmanager
def local_cache_where_away(recipe: Recipe, recipe_dir: Path) -> Iterator[str]:
    """Why the hub, from which the recipe takes something, does not answer, empty if it does: what
    is asked of it meanwhile comes from the local cache or is at once not there."""
    if not _takes_from_hub(recipe, recipe_dir) or find_spec("datasets") is None:
        yield ""
        return
    if not (away := _away()):
        yield ""
        return
    import datasets
    from huggingface_hub import constants

    places = (constants, datasets.config)  # each looks at a variable of its own, not at its name
    before = [place.HF_HUB_OFFLINE for place in places]
    try:
        for place in places:
            place.HF_HUB_OFFLINE = True
        yield away
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


def _takes_from_hub(recipe: Recipe, recipe_dir: Path) -> bool:
    origins = [s.origin for s in recipe.sources] + [s.origin for s in recipe.pair_sources]
    if any(isinstance(origin, HubSource) for origin in origins):
        return True
    base, reward = recipe.base_model, recipe.reward_model
    models = [base.model_name_or_path] if isinstance(base, ImportedBase) else []
    models += [reward.model_name_or_path] if reward and reward.model_name_or_path else []
    return not all(model_directory(model, recipe_dir).is_dir() for model in models)


def _away() -> str:
    from huggingface_hub import constants, get_session

    if constants.is_offline_mode():
        return "not asked, as HF_HUB_OFFLINE says"
    try:
        get_session().head(constants.ENDPOINT, timeout=PROBE_SECONDS)
    except Exception as error:  # of the library that the client is built on
        return f"{constants.ENDPOINT} cannot be reached: {error}"
    return ""

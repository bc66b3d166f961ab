"""What a stage run is known by: its seed, and the key under which its outputs are found again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from pydantic import BaseModel

from caravan.data.template import TEMPLATE_HASH
from caravan.errors import StageError
from caravan.stages.context import StageContext, StageResult
from caravan.store.manifest import hash_file


class Stage(Protocol):
    """A module of `caravan.stages`.

    It may also have `external_files(config, recipe_dir) -> Iterable[Path]`: files that its config
    names and that are not artifacts; their content takes part in the key.
    """

    NAME: str
    VERSION: int

    def run(
        self, config: Any, inputs: Mapping[str, Path], context: StageContext
    ) -> StageResult: ...


def stage_seed(recipe_seed: int, node: str) -> int:
    """The seed of one stage run: the same in every run of the recipe, and different per node."""
    digest = hashlib.sha256(f"{recipe_seed}/{node}".encode()).digest()
    return int.from_bytes(digest[:4]) >> 1  # 31 bits suit every generator


def stage_key(
    module: Stage,
    config: BaseModel,
    inputs: Mapping[str, str],
    seed: int,
    *,
    recipe_dir: Path = Path(),
) -> str:
    """What the outputs of a stage depend on, as one digest.

    Of the resources only `cpus` counts: the number of threads fixes the order of sums. Of the
    config, what its class names in `not_in_key` does not.
    """
    left_out: frozenset[str] = getattr(config, "not_in_key", frozenset())
    content = {
        "stage": module.NAME,
        "version": module.VERSION,
        "config": _without_resources(config.model_dump(mode="json", exclude=set(left_out))),
        "inputs": dict(inputs),
        "seed": seed,
        "chat_template": TEMPLATE_HASH,
    }
    external: Callable[[Any, Path], Iterable[Path]] | None
    external = getattr(module, "external_files", None)
    if external is not None:
        content["files"] = _file_digests(external(config, recipe_dir))
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _without_resources(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_resources(v) for v in value]
    if not isinstance(value, dict):
        return value
    kept = {k: _without_resources(v) for k, v in value.items()}
    resources = kept.get("resources")
    if isinstance(resources, dict) and "cpus" in resources:
        kept["resources"] = {"cpus": resources["cpus"]}
    return kept


def _file_digests(paths: Iterable[Path]) -> list[str]:
    digests = []
    for path in paths:
        try:
            digests.append(hash_file(path, "").sha256)
        except OSError as error:
            raise StageError(f"{path}: {error.strerror}; correct the path in the recipe") from error
    return digests


def load_stage(stage: str) -> Stage:
    name = stage if "." in stage else f"caravan.stages.{stage.replace('-', '_')}"
    try:
        return cast(Stage, import_module(name))
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise StageError(f"there is no stage {stage!r} (module {name})") from error

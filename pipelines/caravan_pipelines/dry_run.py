"""Check everything that can be known before the first step of a run.

caravan run RECIPE --dry-run
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import islice
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from rich.console import Console
from rich.text import Text

from caravan.data.records import Conversation, EvalInstance, Pair
from caravan.errors import CaravanError, DataError, MissingExtraError, RecipeError, below
from caravan.recipe import (
    BaseModelConfig,
    ChatTemplate,
    DPOConfig,
    EvalTask,
    HubSource,
    ImportedBase,
    OpenAIEngineConfig,
    PairSource,
    PretrainedBase,
    Recipe,
    RewardModelConfig,
    SFTConfig,
    Source,
    TrainingConfig,
    TransformersEngineConfig,
    VLLMEngineConfig,
)
from caravan.recipe.paths import model_directory
from caravan.settings import Settings

if TYPE_CHECKING:
    from caravan.stages.curate import Filters

SAMPLE_ROWS = 200
"""Rows of each source that are rendered and masked; of files, every row is read all the same."""
FILTERED_ROWS = 1_000
"""Rows of each source that go through the filters of `curate`: near duplicates take time."""
SAMPLE_CHARACTERS = 4_000
"""Of a message, for a tokenizer like the one that the run will train."""
BYTES_PER_PARAMETER = 16
"""Weights, gradients and Adam's two moments in float32."""
GIB = 2**30

Check = tuple[str, Callable[[], str]]


def dry_run(recipe: Recipe, recipe_dir: Path, settings: Settings, console: Console) -> None:
    """Run every check, tell how each went, and fail if one failed.

    Raises:
        CaravanError: at least one check failed.
    """
    failed = 0

    def tell(state: str, style: str, says: str) -> None:
        console.print(Text.assemble((f"{state:<8}", style), says), soft_wrap=True)

    for title, check in _checks(recipe, recipe_dir, settings, Seen()):
        try:
            tell("ok", "green", f"{title}: {check()}")
        except CaravanError as error:
            failed += 1
            tell("failed", "red", f"{title}: {below(title, error)}")
        except Exception as error:
            # Not foreseen, but the other checks still have something to tell.
            failed += 1
            tell("failed", "red", f"{title}: {type(error).__name__}: {error}")
    if failed:
        raise CaravanError(f"{failed} of the checks failed; nothing was started")


@dataclass
class Seen:
    """What the sources hold, as their checks find it, for the checks that come after."""

    rows: list[Conversation] = field(default_factory=list)
    """The first ones."""
    trainable: Counter[str] = field(default_factory=Counter)
    """Rows that RLVR takes, by skill: those with a verifier and a ground truth, or all."""
    pairs: list[Pair] = field(default_factory=list)
    """The first ones."""
    instances: dict[str, list[EvalInstance]] = field(default_factory=dict)
    """Of each task whose questions could be read."""


def _checks(recipe: Recipe, recipe_dir: Path, settings: Settings, seen: Seen) -> Iterator[Check]:
    from caravan.stages.curate import Filters
    from caravan_pipelines.graph import stage_graph
    from caravan_pipelines.prompt_checks import rlvr_prompts

    yield "recipe", lambda: f"{recipe.name}, {len(stage_graph(recipe))} stages"
    yield "registry", lambda: _registry(settings)
    yield "store", lambda: _store(settings)
    for name, engine in recipe.engines.items():
        if isinstance(engine, OpenAIEngineConfig):
            yield f"engine {name}", lambda engine=engine: _has_key(engine)  # type: ignore[misc]
        if isinstance(engine, TransformersEngineConfig | VLLMEngineConfig):
            yield (
                f"engine {name}",
                lambda name=name, engine=engine: _asked(name, engine, recipe, recipe_dir),  # type: ignore[misc]
            )
    if recipe.verifiers:
        yield "verifiers", lambda: _verifiers(recipe, recipe_dir)
    if recipe.sources or recipe.pair_sources:
        yield "licences", lambda: _licences(recipe)
    if recipe.curate:
        filters = Filters(recipe.curate, [])
        for source in recipe.sources:
            yield (
                f"source {source.name}",
                lambda source=source: _source(  # type: ignore[misc]
                    source, recipe, recipe_dir, filters, seen
                ),
            )
    for of_pairs in recipe.pair_sources:
        yield (
            f"pairs {of_pairs.name}",
            lambda source=of_pairs: _pair_source(source, recipe_dir, seen.pairs),  # type: ignore[misc]
        )
    if recipe.rlvr:
        yield "rlvr", lambda: rlvr_prompts(recipe, seen.trainable)
    for task in recipe.tasks:
        yield f"task {task.name}", lambda task=task: _task(task, recipe, recipe_dir, seen)  # type: ignore[misc]
    if isinstance(recipe.base_model, ImportedBase):
        yield "base model", lambda: _model(recipe.base_model, recipe_dir)
    if recipe.reward_model and recipe.reward_model.model_name_or_path:
        existing = ImportedBase(model_name_or_path=recipe.reward_model.model_name_or_path)
        yield "reward model", lambda: _reward_model(existing, recipe, recipe_dir)
    if trained := _trained(recipe):
        yield "lengths", lambda: _lengths(trained, recipe, recipe_dir)
    if sft := recipe.sft:
        yield "template and masks", lambda: _masks(sft, recipe, recipe_dir, seen.rows)
    if recipe.tasks or recipe.respond:
        yield "prompts", lambda: _prompts(recipe, recipe_dir, seen)
    if recipe.pair_sources:
        for name in ("dpo", "reward_model"):
            if stage := trained.get(name):
                yield (
                    f"masks of pairs for {name}",
                    lambda stage=stage: _pair_masks(stage, recipe, recipe_dir, seen.pairs),  # type: ignore[misc]
                )
    if trained:
        yield "memory", lambda: _memory(next(iter(trained.values())), recipe, recipe_dir)
        yield "packages", lambda: _packages(trained)
    if isinstance(recipe.base_model, PretrainedBase):
        yield "two steps of base", lambda: _two_steps("base", recipe.base_model)
    if sft:
        yield "two steps of sft", lambda: _two_steps("sft", sft, _answered(seen.rows))
    if recipe.dpo:
        yield "two steps of dpo", lambda: _two_steps("dpo", recipe.dpo, seen.pairs)
    if reward := trained.get("reward_model"):
        yield "two steps of reward-model", lambda: _two_steps("reward_model", reward, seen.pairs)


def _registry(settings: Settings) -> str:
    from caravan.registry import Registry

    with Registry(settings.resolved_registry_url) as registry:
        return registry.url


def _store(settings: Settings) -> str:
    from caravan.store import open_store
    from caravan_pipelines.launch.local import check_writable

    store = open_store(settings.resolved_store_url, settings)
    check_writable(store)
    return store.url


def _has_key(engine: OpenAIEngineConfig) -> str:
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


def _asked(
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


def _verifiers(recipe: Recipe, recipe_dir: Path) -> str:
    from caravan.verifiers import own_verifiers

    with own_verifiers(recipe.verifiers, recipe_dir) as started:
        return f"{', '.join(started)} can be imported"


def _trained(recipe: Recipe) -> dict[str, TrainingConfig]:
    """The stages that train the base model or one made from it, in their order."""
    names = ("sft", "dpo", "reward_model", "rlvr")
    trained = {name: stage for name in names if (stage := getattr(recipe, name)) is not None}
    if recipe.reward_model and recipe.reward_model.model_name_or_path:
        del trained["reward_model"]
    return trained


def _packages(trained: Mapping[str, TrainingConfig]) -> str:
    from caravan.stages.extras import check_extras

    for name, stage in trained.items():
        try:
            check_extras(stage, several=stage.resources.training_processes > 1)
        except MissingExtraError as error:
            raise MissingExtraError(f"{name}: {error}") from error
    return "those of the training stages' options are installed"


def _licences(recipe: Recipe) -> str:
    return ", ".join(
        sorted({s.license for s in recipe.sources} | {p.license for p in recipe.pair_sources})
    )


def _source(
    source: Source,
    recipe: Recipe,
    recipe_dir: Path,
    filters: Filters,
    seen: Seen,
) -> str:
    from caravan.data.card import SourceCard, counted
    from caravan.stages.curate import load

    card = SourceCard(source)
    on_hub = isinstance(source.origin, HubSource)
    takes_all = recipe.rlvr is not None and recipe.rlvr.prompts == "all"
    rows = load(source, recipe.seed, recipe_dir, recipe.verifiers, unread=card.unread)
    for row in islice(rows, SAMPLE_ROWS) if on_hub else rows:
        card.count(row)
        if card.available <= FILTERED_ROWS and (reason := filters.reason_to_drop(row)):
            card.dropped[reason] += 1
            continue
        if card.available <= SAMPLE_ROWS:
            seen.rows.append(row)
        if takes_all or (row.verifier is not None and row.ground_truth is not None):
            seen.trainable[row.skill] += 1
    if not card.available:
        raise DataError(f"source {source.name} holds no row; check its origin")
    said = [
        f"the first {card.available} rows can be read" if on_hub else f"{card.available:,} rows"
    ]
    if card.dropped:
        some = f" of the first {FILTERED_ROWS:,}" if card.available > FILTERED_ROWS else ""
        said.append(f"to be dropped{some}: {counted(card.dropped)}")
    return "; ".join([*said, *card.remarks()])


def _pair_source(source: PairSource, recipe_dir: Path, sample: list[Pair]) -> str:
    from caravan.data.card import counted
    from caravan.stages.read_pairs import load_pairs, remarks, unfit

    unread: set[str] = set()
    rows = load_pairs(source, recipe_dir, unread=unread)
    on_hub = isinstance(source.origin, HubSource)
    pairs = list(islice(rows, SAMPLE_ROWS) if on_hub else rows)
    reasons = Counter(reason for pair in pairs if (reason := unfit(pair)))
    fit = [pair for pair in pairs if not unfit(pair)]
    if not fit:
        raise DataError(f"source {source.name} holds no pair to learn from; check its origin")
    sample += fit[:SAMPLE_ROWS]
    said = ["the first pairs can be read" if on_hub else f"{len(fit):,} pairs"]
    if reasons:
        said.append(f"to be dropped: {counted(reasons)}")
    return "; ".join([*said, *remarks(pairs, unread)])


def _task(task: EvalTask, recipe: Recipe, recipe_dir: Path, seen: Seen) -> str:
    from caravan.evals.tasks import load_instances

    seen.instances[task.name] = load_instances(task, recipe.seed, recipe_dir)
    return f"{len(seen.instances[task.name]):,} instances"


def _model(base: BaseModelConfig, recipe_dir: Path) -> str:
    from caravan.training.importing import check_import, find_model

    assert isinstance(base, ImportedBase)
    source = find_model(base, recipe_dir)
    checked = check_import(source, base.chat_template)
    return "; ".join([base.model_name_or_path, *checked.notes])


def _reward_model(existing: ImportedBase, recipe: Recipe, recipe_dir: Path) -> str:
    from caravan.training.importing import check_import, check_reward_model, find_model
    from caravan.training.models import check_reads_tokens_of

    directory = find_model(existing, recipe_dir)
    check_reward_model(directory)
    base, found = recipe.base_model, check_import(directory, will_be_tuned=False)
    if recipe.rlvr and recipe.rlvr.reads_reward_model and isinstance(base, ImportedBase):
        policy = check_import(find_model(base, recipe_dir)).tokenizer
        check_reads_tokens_of(policy, found.tokenizer, directory)
    return "; ".join([existing.model_name_or_path, *found.notes])


def _lengths(trained: Mapping[str, TrainingConfig], recipe: Recipe, recipe_dir: Path) -> str:
    """No stage may train on rows that are longer than the model can read."""
    positions = _positions(recipe, recipe_dir)
    lengths = {name: stage.max_length for name, stage in trained.items()}
    for name, length in lengths.items():
        if length > positions and name != "rlvr":  # which takes the smaller of the two
            raise RecipeError(
                f"{name}.max_length={length} is more than the {positions} positions of the base "
                f"model; set it to at most {positions}"
            )
    return ", ".join(f"{name} {length:,}" for name, length in lengths.items()) + " tokens at most"


def _positions(recipe: Recipe, recipe_dir: Path) -> int:
    """Of the base model."""
    from caravan.inference.engine import positions_of
    from caravan.training.importing import find_model
    from caravan.training.models import check_model_directory

    base = recipe.base_model
    if isinstance(base, PretrainedBase):
        return base.max_position_embeddings
    directory = find_model(base, recipe_dir)
    check_model_directory(directory)
    return positions_of(SimpleNamespace(**json.loads((directory / "config.json").read_text())))


def _prompts(recipe: Recipe, recipe_dir: Path, seen: Seen) -> str:
    from caravan.inference.prompt_format import prompt_format
    from caravan_pipelines.prompt_checks import prompt_lengths

    texts = (message.content for row in seen.rows for message in row.messages)
    tokenizer, positions = _tokenizer(recipe, recipe_dir, texts), _positions(recipe, recipe_dir)
    chosen: ChatTemplate | None = "tulu"  # as most of the models that are asked
    if isinstance(recipe.base_model, ImportedBase) and not _trained(recipe):
        chosen = recipe.base_model.chat_template
    asked = prompt_format(tokenizer, chosen)
    return prompt_lengths(recipe, recipe_dir, seen.rows, asked, positions, seen.instances)


def _masks(sft: SFTConfig, recipe: Recipe, recipe_dir: Path, rows: list[Conversation]) -> str:
    from caravan.training.tokenize import tokenize_conversations

    answered = _answered(rows)
    if not answered:
        raise RecipeError(
            "no source has a row with a reply to train on; docs/data-formats.md says which columns "
            "are read"
        )
    texts = (message.content for row in answered for message in row.messages)
    tokenizer = _tokenizer(recipe, recipe_dir, texts)
    max_length = sft.max_length
    data = tokenize_conversations(answered, tokenizer, max_length)
    said = [f"{len(answered)} rows rendered"]
    if data.truncated:
        said.append(f"{data.truncated} will be cut at {max_length} tokens")
    if data.dropped:
        said.append(
            f"{data.dropped} will be dropped: no reply of theirs begins within {max_length} tokens"
        )
    return "; ".join(said)


def _answered(rows: list[Conversation]) -> list[Conversation]:
    return [row for row in rows if row.has_reply]


def _pair_masks(
    stage: DPOConfig | RewardModelConfig, recipe: Recipe, recipe_dir: Path, pairs: list[Pair]
) -> str:
    from caravan.training.tokenize import tokenize_pairs

    texts = [m.content for p in pairs for m in p.prompt] + [p.chosen for p in pairs]
    whole = isinstance(stage, RewardModelConfig)
    tokenizer = _tokenizer(recipe, recipe_dir, texts)
    data = tokenize_pairs(pairs, tokenizer, stage.max_length, whole=whole)
    said = [f"{len(pairs)} pairs rendered"]
    if data.truncated:
        said.append(f"{data.truncated} will be cut at {stage.max_length} tokens")
    if data.dropped:
        what = "do not end" if whole else "do not both begin"
        said.append(
            f"{data.dropped} will be dropped: their replies {what} within {stage.max_length} tokens"
        )
    return "; ".join(said)


def _two_steps(
    kind: str, config: object, rows: list[Conversation] | list[Pair] | None = None
) -> str:
    from caravan.training.dry_run import two_steps

    steps = two_steps(kind, config, rows=rows or None)  # type: ignore[arg-type]
    losses = ", ".join(f"{step.values['loss']:.3f}" for step in steps)
    what = "rows and settings train" if rows else "the settings train"
    return f"{what} a small random model, which says nothing of yours: losses {losses}"


def _tokenizer(recipe: Recipe, recipe_dir: Path, texts: Iterable[str]) -> Any:
    """The base model's tokenizer, or one like the one the run will train."""
    from caravan.training.bpe import train_tokenizer
    from caravan.training.importing import check_import, find_model

    base = recipe.base_model
    if isinstance(base, ImportedBase):
        return check_import(find_model(base, recipe_dir)).tokenizer
    # Training a tokenizer takes time that grows with the square of the longest word.
    return train_tokenizer(
        [text[:SAMPLE_CHARACTERS] for text in texts],
        vocab_size=base.vocab_size,
        model_max_length=base.max_position_embeddings,
    )


def _memory(stage: TrainingConfig, recipe: Recipe, recipe_dir: Path) -> str:
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

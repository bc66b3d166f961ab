"""How many rows a recipe moves through its stages, and how long they are.

Rows that can be read without a network are sampled; of others the recipe's own counts are taken
and a length is assumed. Every assumption is told in `Flow.notes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from caravan.data.records import Conversation, Message, Pair
from caravan.errors import CaravanError
from caravan.evals.tasks import load_instances
from caravan.recipe import (
    EvalTask,
    FileSource,
    GeneratedSource,
    HubSource,
    ImportedBase,
    PairSource,
    PretrainedBase,
    Recipe,
    Source,
)
from caravan.recipe.paths import model_directory

SAMPLED_ROWS = 200
"""Rows of each source that are read for their lengths."""
ASSUMED_PROMPT_TOKENS, ASSUMED_REPLY_TOKENS = 250.0, 400.0
"""Of rows that cannot be read: about what a row of the public Tülu 3 mixture has."""
ASSUMED_ROWS = 10_000
CHARACTERS_PER_TOKEN = 4.2
"""Of English text and code under vocabularies of 100,000 tokens and more."""
TEMPLATE_TOKENS = 8
"""Role markers and end token of one exchange."""
INSTANCES = {
    "agieval_english": 2646, "alpaca_eval": 805, "alpaca_eval_2": 805, "bbh": 6511,
    "deepmind_mathematics": 5600, "do_anything_now": 300, "drop": 9536, "gpqa": 448,
    "gsm8k": 1319, "harmbench": 320, "href": 430, "humaneval": 164, "humaneval_plus": 164,
    "ifeval": 541, "jailbreaktrigger": 400, "math": 5000, "mmlu": 14042, "mmlu_pro": 12032,
    "popqa": 14267, "truthfulqa": 817, "truthfulqa_mc2": 817, "wildguardtest": 749,
    "wildjailbreaktest": 2210, "xstest": 450,
}  # fmt: skip
"""Questions of public test sets."""
ASSUMED_INSTANCES = 1000


@dataclass(frozen=True)
class Stream:
    """Rows of one source, by their means."""

    rows: float
    prompt_tokens: float = ASSUMED_PROMPT_TOKENS
    reply_tokens: float = ASSUMED_REPLY_TOKENS
    longest: float = 4 * (ASSUMED_PROMPT_TOKENS + ASSUMED_REPLY_TOKENS)
    """Tokens of the longest row seen."""

    @property
    def tokens(self) -> float:
        return self.prompt_tokens + self.reply_tokens


@dataclass(frozen=True)
class Flow:
    sources: dict[str, Stream]
    """Sources of curate and tasks of synthesize."""
    mix: Stream
    prompts: Stream
    """What the pool answers, with replies as long as those of the mix; or the recipe's own pairs,
    with replies as long as theirs."""
    instances: dict[str, int]
    """Questions of each evaluation task."""
    notes: tuple[str, ...] = ()

    @property
    def curated_rows(self) -> float:
        return sum(stream.rows for stream in self.sources.values())


@dataclass
class _Reader:
    recipe: Recipe
    recipe_dir: Path
    notes: list[str] = field(default_factory=list)

    def sample(self, source: Source) -> list[Conversation]:
        """The first rows of a source; none where they lie on a hub, or cannot be read."""
        from caravan.stages.curate import load

        if isinstance(source.origin, HubSource):
            return []
        try:
            recipe = self.recipe
            rows = load(source, recipe.seed, self.recipe_dir, recipe.verifiers)
            return list(islice(rows, SAMPLED_ROWS))
        except CaravanError as error:
            self.notes.append(f"source {source.name} cannot be read: {error}")
            return []

    def rows(self, source: Source) -> float:
        if isinstance(source.origin, GeneratedSource):
            return source.origin.count
        if known := source.rows or source.reported_rows:
            return known
        if not isinstance(source.origin, HubSource):
            from caravan.stages.curate import load

            try:
                recipe = self.recipe
                rows = load(source, recipe.seed, self.recipe_dir, recipe.verifiers)
                return sum(1 for _ in rows)
            except CaravanError:
                pass  # told by `sample`
        self.notes.append(f"source {source.name}: {ASSUMED_ROWS:,} rows assumed")
        return ASSUMED_ROWS

    def pairs(self, source: PairSource) -> tuple[float, list[Pair]]:
        """How many pairs a source holds, and the first of them."""
        from caravan.stages.read_pairs import load_pairs

        if isinstance(source.origin, FileSource):
            try:
                rows = load_pairs(source, self.recipe_dir)
                first = list(islice(rows, SAMPLED_ROWS))
                return len(first) + sum(1 for _ in rows), first
            except CaravanError as error:
                self.notes.append(f"{error}")
        self.notes.append(f"source {source.name}: {ASSUMED_ROWS:,} pairs assumed")
        return ASSUMED_ROWS, []


@dataclass(frozen=True)
class _Side:
    """One reply of a pair, with its prompt."""

    messages: tuple[Message, ...]


def flow_of(recipe: Recipe, recipe_dir: Path) -> Flow:
    """What flows through `recipe`; nothing is downloaded."""
    reader = _Reader(recipe, recipe_dir)
    samples = {source.name: reader.sample(source) for source in recipe.sources}
    count = token_counter(recipe, recipe_dir, [r for rows in samples.values() for r in rows])
    sources: dict[str, Stream] = {}
    unread = 0
    for source in recipe.sources:
        rows = reader.rows(source)
        if samples[source.name]:
            sources[source.name] = _measured(rows, samples[source.name], count)
        else:
            sources[source.name] = Stream(rows)
            unread += 1
    if unread:
        reader.notes.append(
            f"{unread} sources cannot be read here: {ASSUMED_PROMPT_TOKENS:g} + "
            f"{ASSUMED_REPLY_TOKENS:g} tokens per row assumed"
        )
    read = [s for s in sources.values() if s.rows]
    for task in recipe.synthesize.tasks if recipe.synthesize and recipe.reads_rows else ():
        sources[task.name] = _mean(read, task.count)
    mix = _mixed(recipe, sources) if sources else Stream(0)
    prompts = _own_pairs(reader, count) or _sampled(recipe, mix)
    instances = {}
    for task_ in recipe.tasks:
        found = _instances(task_, recipe_dir)
        instances[task_.name] = ASSUMED_INSTANCES if found is None else found
        if found is None:
            reader.notes.append(f"task {task_.name}: {ASSUMED_INSTANCES:,} questions assumed")
    return Flow(sources, mix, prompts, instances, tuple(reader.notes))


def token_counter(
    recipe: Recipe, recipe_dir: Path, rows: Sequence[Conversation]
) -> Callable[[str], float]:
    """Counts the tokens of a text: by the base model's tokenizer where it is at hand, by one
    trained on `rows` where the run trains its own, else by the length of the text."""
    base = recipe.base_model
    if isinstance(base, ImportedBase):
        file = model_directory(base.model_name_or_path, recipe_dir) / "tokenizer.json"
        if not file.is_file():
            return lambda text: len(text) / CHARACTERS_PER_TOKEN
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(file))
    else:
        assert isinstance(base, PretrainedBase)
        if not rows:
            return lambda text: len(text) / CHARACTERS_PER_TOKEN
        try:
            from caravan.training.bpe import train_tokenizer
        except ImportError:  # where the recipe is launched, but not run
            return lambda text: len(text) / CHARACTERS_PER_TOKEN
        tokenizer = train_tokenizer(
            (message.content for row in rows for message in row.messages),
            vocab_size=base.vocab_size,
            model_max_length=base.max_position_embeddings,
            split_digits=base.split_digits,
        ).backend_tokenizer
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def _measured(
    rows: float, sample: Iterable[Conversation | _Side], count: Callable[[str], float]
) -> Stream:
    prompts, replies = [], []
    for row in sample:
        of_reply = sum(count(m.content) for m in row.messages if m.role == "assistant")
        whole = sum(count(m.content) for m in row.messages)
        prompts.append(whole - of_reply + TEMPLATE_TOKENS * len(row.messages) / 2)
        replies.append(of_reply)
    longest = max(p + r for p, r in zip(prompts, replies, strict=True))
    return Stream(rows, sum(prompts) / len(prompts), sum(replies) / len(replies), longest)


def _mean(streams: Sequence[Stream], rows: float) -> Stream:
    total = sum(s.rows for s in streams)
    if not total:
        return Stream(rows)
    return Stream(
        rows,
        sum(s.rows * s.prompt_tokens for s in streams) / total,
        sum(s.rows * s.reply_tokens for s in streams) / total,
        max(s.longest for s in streams),
    )


def _mixed(recipe: Recipe, sources: dict[str, Stream]) -> Stream:
    parts: list[Stream] = []
    components = recipe.mix.dataset_mixer_list
    if not components:
        parts = list(sources.values())
    for component in components:
        stream = sources[component.source]
        rows = stream.rows * (component.weight or 1.0)
        if component.count is not None:
            rows = min(component.count, stream.rows)
        parts.append(Stream(rows, stream.prompt_tokens, stream.reply_tokens, stream.longest))
    return _mean(parts, sum(part.rows for part in parts))


def _sampled(recipe: Recipe, mix: Stream) -> Stream:
    sampling, asked = recipe.sample_prompts, 0
    if sampling is not None:
        asked = sampling.used_in_sft + sampling.unused_in_sft
        asked += sum(component.count for component in sampling.components)
    return Stream(asked, mix.prompt_tokens, mix.reply_tokens, mix.longest)


def _own_pairs(reader: _Reader, count: Callable[[str], float]) -> Stream | None:
    """The pairs that a recipe names, by the means of their sides; None where it names none."""
    streams = []
    for source in reader.recipe.pair_sources:
        number, pairs = reader.pairs(source)
        sides = [
            _Side((*pair.prompt, Message(role="assistant", content=text)))
            for pair in pairs
            for text in (pair.chosen, pair.rejected)
        ]
        streams.append(_measured(number, sides, count) if sides else Stream(number))
    return _mean(streams, sum(stream.rows for stream in streams)) if streams else None


def _instances(task: EvalTask, recipe_dir: Path) -> int | None:
    """How many questions are asked; None where nothing here says it."""
    if task.task.startswith("pocket-"):
        return task.limit or 200
    if known := INSTANCES.get(task.task):
        return known if task.limit is None else min(task.limit, known)
    try:
        return len(load_instances(task, 0, recipe_dir))
    except CaravanError:
        return task.limit

"""What must hold across the sections of a recipe: names that are referred to exist, and no stage
lacks the one before it. Each problem says where, what is wrong and what to do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from caravan.errors import RecipeError

if TYPE_CHECKING:
    from caravan.recipe import CurateConfig, EvalTask, Recipe, Source

PREFERENCE_STAGES = ("sample_prompts", "respond", "judge", "pair")
"""Each of them reads what the one before writes; together they make the pairs."""


def suggest(name: str, known: Iterable[str], *, cutoff: float = 0.55) -> str:
    """`; did you mean 'x'?`, or what there is to choose from.

    Args:
        cutoff: How alike two names are, of 1, for one to be meant by the other.
    """
    choices = list(known)
    close = get_close_matches(name, choices, n=1, cutoff=cutoff)
    if close:
        return f"; did you mean {close[0]!r}?"
    if not choices:
        return "; there are none"
    return f"; there are: {', '.join(choices)}"


MAX_LEARNING_RATE = 1.0
"""AdamW moves every weight by about the learning rate in each step; weights are below 1."""


def number_or_auto(value: object) -> object:
    """Of a field that takes one or the other: one sentence, where a union would give two."""
    number = isinstance(value, int) and not isinstance(value, bool) and value > 0
    if value != "auto" and not number:
        raise ValueError(f"expected a whole number above 0, or auto; got {value!r}")
    return value


def check_learning_rate(value: float) -> float:
    """`value`, if a model could survive it.

    Raises:
        ValueError: it is as large as the weights themselves.
    """
    if value > MAX_LEARNING_RATE:
        raise ValueError(
            f"{value:g} is no learning rate: AdamW would move every weight by about {value:g} in "
            "each step; usual values lie between 1e-7 and 1e-3"
        )
    return value


def problems(recipe: Recipe) -> Iterator[str]:
    """Every contradiction between sections of `recipe`."""
    yield from _duplicates(recipe)
    yield from _unknown_engines(recipe)
    yield from _classifier_asked_otherwise(recipe)
    yield from _unknown_sources(recipe)
    yield from _unknown_names(recipe)
    if recipe.curate is not None:
        yield from refused_licenses(recipe.curate)
    yield from _refused_licenses_of_pairs(recipe)
    yield from _missing_stages(recipe)
    yield from _unselectable(recipe)


def doubts(recipe: Recipe) -> Iterator[str]:
    """What `recipe` may say and probably does not mean: where, what, and what to do."""
    yield from (f"{told}; the recipe can be planned, not run" for told in _unfit_tasks(recipe))
    if recipe.dpo is not None:
        yield from (f"dpo.{doubt}" for doubt in recipe.dpo.loss.doubts())
    if recipe.curate is not None and not recipe.reads_rows:
        yield "curate: no stage reads its rows (sft, sample_prompts, rlvr), so it is left out"
    rows = []
    if (sft := recipe.sft) is not None:
        rows.append(("sft.sequences_per_step", sft.sequences_per_step, sft.resources))
    for name, stage in (("dpo", recipe.dpo), ("reward_model", recipe.reward_model)):
        if stage is not None:
            rows.append((f"{name}.pairs_per_step", stage.pairs_per_step, stage.resources))
    if (rl := recipe.rlvr) is not None:
        if rl.algorithm.kind == "grpo":
            yield from (f"rlvr.algorithm.{doubt}" for doubt in rl.algorithm.doubts())
        rows.append(("rlvr.prompts_per_step", rl.prompts_per_step, rl.resources))
    for path, per_step, resources in rows:
        processes = resources.training_processes
        if per_step < processes:
            yield (
                f"{path}: {per_step} rows for {processes} processes leave "
                f"{processes - per_step} without work in every step; take at least {processes}"
            )


def _duplicates(recipe: Recipe) -> Iterator[str]:
    sources = [source.name for source in _sources(recipe)]
    synthesised = [task.name for task in recipe.synthesize.tasks] if recipe.synthesize else []
    named: dict[str, Sequence[str]] = {
        "curate.sources": sources,
        "synthesize.tasks": synthesised,
        "evaluate.tasks": [task.name for task in recipe.tasks],
        "respond.pool": [member.name for member in recipe.respond.pool] if recipe.respond else [],
        "pair.sources": [source.name for source in recipe.pair_sources],
        "mix.dataset_mixer_list": [c.source for c in recipe.mix.dataset_mixer_list],
    }
    for path, names in named.items():
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield f"{path}: {name!r} appears {names.count(name)} times; names are unique here"
    for name in sorted(set(sources) & set(synthesised)):
        yield (
            f"synthesize.tasks: {name!r} is also the name of a source of curate; "
            "rename one, the mix could not tell them apart"
        )


def _unknown_engines(recipe: Recipe) -> Iterator[str]:
    used: list[tuple[str, str | None]] = []
    if recipe.synthesize is not None:
        for i, task in enumerate(recipe.synthesize.tasks):
            used.append((f"synthesize.tasks[{i}].prompt_engine", task.prompt_engine))
            used.append((f"synthesize.tasks[{i}].response_engine", task.response_engine))
    if recipe.respond is not None:
        for i, member in enumerate(recipe.respond.pool):
            used.append((f"respond.pool[{i}].engine", member.engine))
    if recipe.judge is not None and recipe.judge.judge.kind == "llm":
        used.append(("judge.judge.engine", recipe.judge.judge.engine))
    if (suite := recipe.evaluate) is not None:
        if suite.judge is not None and suite.judge.kind == "llm":
            used.append(("evaluate.judge.engine", suite.judge.engine))
        if suite.safety_judge is not None:
            used.append(("evaluate.safety_judge.engine", suite.safety_judge.engine))
    for path, engine in used:
        if engine is not None and engine not in recipe.engines:
            yield f"{path}: {engine!r} is not in engines{suggest(engine, recipe.engines)}"


def _classifier_asked_otherwise(recipe: Recipe) -> Iterator[str]:
    safety = recipe.evaluate.safety_judge if recipe.evaluate is not None else None
    name = safety.engine if safety is not None else ""
    if getattr(recipe.engines.get(name), "chat_template", None) == "model":
        yield (
            f"engines.{name}.chat_template: the safety judge is asked in WildGuard's format, which "
            "has the lines of the Tülu template; leave chat_template out"
        )


def _unknown_sources(recipe: Recipe) -> Iterator[str]:
    tasks = recipe.synthesize.tasks if recipe.synthesize is not None else ()
    sources = [s.name for s in _sources(recipe)] + [t.name for t in tasks]
    skills = sorted({s.skill for s in _sources(recipe)} | {t.skill for t in tasks})
    used = [
        (f"mix.dataset_mixer_list[{i}].source", component.source)
        for i, component in enumerate(recipe.mix.dataset_mixer_list)
    ]
    if recipe.sample_prompts is not None:
        used += [
            (f"sample_prompts.components[{i}].sources[{j}]", name)
            for i, component in enumerate(recipe.sample_prompts.components)
            for j, name in enumerate(component.sources)
        ]
    for path, name in used:
        if name not in sources:
            yield f"{path}: {name!r} is no source and no synthesis task{suggest(name, sources)}"
    of_data = [*sources, *(source.name for source in recipe.pair_sources)]
    for i, name in enumerate(recipe.decontaminate.keep_sources):
        if name not in of_data:
            yield (
                f"decontaminate.keep_sources[{i}]: {name!r} is no source, no synthesis task and "
                f"no source of pairs{suggest(name, of_data)}"
            )
    for i, skill in enumerate(recipe.rlvr.skills if recipe.rlvr is not None else ()):
        if skill not in skills:
            yield f"rlvr.skills[{i}]: no source has the skill {skill!r}{suggest(skill, skills)}"


def _unknown_names(recipe: Recipe) -> Iterator[str]:
    """Names of what this project brings: a run would meet them after hours of other work."""
    # These know recipes, so a recipe can know them only when it is checked. None is heavy.
    from caravan.data.formats import VERIFIER_NAMES
    from caravan.evals.tasks import TASKS
    from caravan.pocket.sources import GENERATORS
    from caravan.pocket.teacher import PROGRAMS
    from caravan.recipe.evaluation import VERIFY
    from caravan.verifiers import VERIFIERS

    for name in recipe.verifiers:
        if name in VERIFIERS or name in VERIFIER_NAMES:
            yield f"verifiers.{name}: Caravan brings a verifier of this name; choose another"
    verifiers = (*recipe.verifiers, *VERIFIERS)
    used: list[tuple[str, str, str, Iterable[str]]] = []
    for name, engine in recipe.engines.items():
        if engine.kind == "program":
            used.append((f"engines.{name}.program", "program", engine.program, PROGRAMS))
    for i, source in enumerate(_sources(recipe)):
        path = f"curate.sources[{i}]"
        if source.origin.kind == "generated":
            generator = source.origin.generator
            used.append((f"{path}.origin.generator", "generator", generator, GENERATORS))
        if source.verifier is not None:
            used.append((f"{path}.verifier", "verifier", source.verifier, verifiers))
    for i, task in enumerate(recipe.synthesize.tasks if recipe.synthesize is not None else ()):
        if task.verifier is not None:
            used.append((f"synthesize.tasks[{i}].verifier", "verifier", task.verifier, VERIFIERS))
    for i, asked in enumerate(recipe.tasks):
        path = f"evaluate.tasks[{i}].verifier"
        if asked.verifier is not None:
            used.append((path, "verifier", asked.verifier, verifiers))
            if asked.task != VERIFY and asked.task in TASKS:  # of another, its name is the matter
                yield (
                    f"{path}: task {asked.task!r} has its own way to score; leave the verifier "
                    f"out, or take `task: {VERIFY}` for questions of your own"
                )
        elif asked.task == VERIFY:
            yield f"{path}: `verify` scores with a verifier; name one{suggest('', verifiers)}"
    for path, what, name, known in used:
        if name not in known:
            yield f"{path}: there is no {what} {name!r}{suggest(name, known)}"


def check_tasks(recipe: Recipe, recipe_dir: Path | None = None) -> None:
    """Refuse to run what could not be evaluated at the end.

    Such a recipe is valid: it can be planned.

    Args:
        recipe_dir: Where the files of the tasks are looked for; None does not look for them.

    Raises:
        RecipeError: there is no evaluation task of a name, or a task lacks its files or whoever
            judges its replies; says all that is lacking.
    """
    if unfit := list(_unfit_tasks(recipe, recipe_dir)):
        raise RecipeError("\n".join(unfit))


def _unfit_tasks(recipe: Recipe, recipe_dir: Path | None = None) -> Iterator[str]:
    from caravan.evals.tasks import TASKS, FromFiles, suggest_task

    if (suite := recipe.evaluate) is None:
        return
    for i, task in enumerate(suite.tasks):
        place, definition = f"evaluate.tasks[{i}]", TASKS.get(task.task)
        if definition is None:
            hint = suggest_task(task.task)
            yield f"{place}.task: there is no evaluation task {task.task!r}{hint}"
        elif isinstance(definition.load, FromFiles) and (
            lacking := definition.load.lacks(task, recipe_dir)
        ):
            yield f"{place}.path: task {task.name} {lacking}"
        elif definition.weighed and task.num_generations > 1:
            yield (
                f"{place}.num_generations: task {task.name} compares given options, "
                "and no completions; leave it out"
            )
    known = [(t.name, TASKS[t.task]) for t in suite.tasks if t.task in TASKS]
    rated = [name for name, definition in known if definition.judged]
    if rated and suite.judge is None:
        yield f"evaluate.judge: a judge rates {_listed(rated)}; add one, or leave them out"
    compared = [name for name, definition in known if definition.compared]
    if compared and (suite.judge is None or suite.judge.kind != "llm"):
        yield (
            f"evaluate.judge: a language model compares {_listed(compared)}; add judge: "
            "{kind: llm, engine: ...}, or leave them out"
        )
    classified = [name for name, definition in known if definition.classified]
    if classified and suite.safety_judge is None:
        yield (
            f"evaluate.safety_judge: a classifier decides about {_listed(classified)}; add "
            "safety_judge: {engine: wildguard} and such an engine, as {kind: vllm, "
            "model_name_or_path: allenai/wildguard}, or leave them out"
        )


def refused_licenses(curate: CurateConfig) -> Iterator[str]:
    """Sources whose licence the recipe does not allow; an unknown one must be allowed."""
    allowed = curate.allowed_licenses
    for i, source in enumerate(curate.sources):
        if source.license not in allowed if allowed else source.license == "unknown":
            yield (
                f"curate.sources[{i}].license: source {source.name} has the licence "
                f"{source.license!r}, which curate.allowed_licenses does not allow; add it there, "
                "or remove the source"
            )


def _refused_licenses_of_pairs(recipe: Recipe) -> Iterator[str]:
    allowed = recipe.curate.allowed_licenses if recipe.curate is not None else ()
    for i, source in enumerate(recipe.pair_sources):
        if allowed and source.license not in allowed:
            yield (
                f"pair.sources[{i}].license: source {source.name} has the licence "
                f"{source.license!r}, which curate.allowed_licenses does not allow; add it there, "
                "or remove the source"
            )


def _missing_stages(recipe: Recipe) -> Iterator[str]:
    for name in ("synthesize", "sft", "sample_prompts", "rlvr"):
        if recipe.curate is None and getattr(recipe, name) is not None:
            yield f"{name}: needs the rows of sources; add curate, or leave {name} out"
    if recipe.sft is None:
        yield from _needs_sft(recipe)
    present = [stage for stage in PREFERENCE_STAGES if getattr(recipe, stage) is not None]
    missing = [stage for stage in PREFERENCE_STAGES if stage not in present]
    if recipe.pair_sources:
        if idle := present[:-1]:
            yield (
                f"pair.sources: the pairs are there already, so {_listed(idle)} would make others; "
                "leave them out (null, where a recipe that this one extends has them), or leave "
                "out pair.sources"
            )
    elif present == ["pair"]:
        yield (
            f"pair: needs {_listed(missing)}, which make what it pairs; add them, or give pairs "
            "of your own as pair.sources"
        )
    elif present and missing:
        yield f"{present[-1]}: needs {_listed(missing)} too; add them, or leave all four out"
    pairs = f"pair.sources with pairs of your own, or {_listed(PREFERENCE_STAGES)}"
    if recipe.dpo is not None and not present:
        yield f"dpo: trains on pairs, so it needs {pairs}"
    if (rewarding := recipe.reward_model) and not rewarding.model_name_or_path and not present:
        yield (
            f"reward_model: trains on pairs, so it needs {pairs}; one that exists needs none, "
            "named as its model_name_or_path"
        )
    if recipe.rlvr is not None and not recipe.reward_model:
        if recipe.rlvr.algorithm.kind == "ppo":
            yield (
                "rlvr.algorithm: ppo starts its value model from the reward model; "
                "add reward_model, or choose kind: grpo"
            )
        if recipe.rlvr.reward_model_multiplier > 0:
            yield (
                "rlvr.reward_model_multiplier: the recipe has no reward model to score with; add "
                "reward_model (one that exists by its model_name_or_path), or set it to 0"
            )


def _unselectable(recipe: Recipe) -> Iterator[str]:
    """What is wrong with the tasks that policies are selected by."""
    for stage, select in recipe.selections.items():
        where = f"{stage}.select"
        if recipe.evaluate is not None:
            yield from _unfit_to_select_by(where, select.tasks, recipe.tasks)
        else:
            yield (
                f"{where}.tasks: {_listed(select.tasks)} would be tasks of evaluate, which the "
                f"recipe lacks; add it, or leave {where} out"
            )


def _unfit_to_select_by(
    where: str, chosen: Sequence[str], of_recipe: Iterable[EvalTask]
) -> Iterator[str]:
    from caravan.evals.tasks import TASKS

    tasks = {task.name: task for task in of_recipe}
    for i, name in enumerate(chosen):
        if name not in tasks:
            known = suggest(name, tasks)
            yield f"{where}.tasks[{i}]: {name!r} is no task under evaluate.tasks{known}"
        elif tasks[name].suite == "unseen":
            yield (
                f"{where}.tasks[{i}]: {name!r} is of the suite unseen, whose scores tell "
                "nothing new of a model that was chosen by them; take a task of the suite dev"
            )
        elif chosen.index(name) < i:
            yield f"{where}.tasks[{i}]: {name!r} is there twice; leave one out"
    known_tasks = [tasks[n] for n in chosen if n in tasks and tasks[n].task in TASKS]
    rated = [task.name for task in known_tasks if TASKS[task.task].judged]
    if rated and len(rated) < len(known_tasks):
        yield (
            f"{where}.tasks: {_listed(rated)} has ratings from 1 to 5, the others shares from "
            "0 to 1, and the mean of both would follow the ratings; take tasks of one kind"
        )


def _needs_sft(recipe: Recipe) -> Iterator[str]:
    for i, member in enumerate(recipe.respond.pool if recipe.respond is not None else ()):
        if member.artifact == "sft":
            yield (
                f"respond.pool[{i}].artifact: the recipe has no sft; take artifact: base, which "
                "the other stages start from then too"
            )
    if (drawing := recipe.sample_prompts) is not None:
        used = [c.name for c in drawing.components if c.drawn_from == "used_in_sft"]
        if drawing.used_in_sft or used:
            yield (
                "sample_prompts: the recipe has no sft, so no prompt is used in it; draw from "
                "those unused_in_sft, or from any"
            )


def _sources(recipe: Recipe) -> Sequence[Source]:
    """Those that the recipe writes down, read or not."""
    return recipe.curate.sources if recipe.curate is not None else ()


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]

"""Whether the prompts of a run, those that models answer and those of RLVR, are there and fit."""

from __future__ import annotations

from collections.abc import Sequence

from caravan.data.records import Message
from caravan.errors import RecipeError, some
from caravan.inference.engine import leaves_room, naming
from caravan.inference.likelihood import encode_questions
from caravan.inference.prompt_format import prompt_format
from caravan.inference.room import without_room
from caravan.recipe import ChatTemplate, HubSource, ImportedBase
from caravan_pipelines.dry_run.models import positions_of_base
from caravan_pipelines.dry_run.seen import Seen


def lengths(seen: Seen, *, trains: bool) -> str:
    """How many prompts leave the recipe's model no room for a reply, or for a whole one; no run
    fails of them.

    Args:
        trains: The model that is asked is one that the run trains.
    """
    recipe, rows = seen.recipe, seen.rows
    if not rows and not seen.instances:
        seen.needs("task")
        seen.needs("source")
    positions = positions_of_base(recipe, seen.recipe_dir)
    chosen: ChatTemplate | None = "tulu"  # as most of the models that are asked
    if isinstance(recipe.base_model, ImportedBase) and not trains:
        chosen = recipe.base_model.chat_template
    asked = prompt_format(seen.tokenizer, chosen)

    def encoded(names: Sequence[str], prompts: Sequence[Sequence[Message]]) -> list[list[int]]:
        with naming(names):
            return asked.encode_all(prompts)

    def too_long(prompts: Sequence[Sequence[int]]) -> int:
        return sum(not leaves_room(ids, positions) for ids in prompts)

    said, cramped = [], []
    for task in recipe.tasks:
        if (instances := seen.instances.get(task.name)) is None:
            continue
        of_task = f"of {len(instances):,} of task {task.name}"
        messages = [i.messages for i in instances]
        if options := [i.options for i in instances if i.options]:
            with naming([i.id for i in instances]):
                questions = encode_questions(asked, messages, options)
            prompts = [q.prompt + max(q.options, key=len) for q in questions]
        else:
            prompts = encoded([i.id for i in instances], messages)
        if count := too_long(prompts):
            said.append(f"{count:,} {of_task}, which count as not answered")
        if options:
            continue
        limit = task.sampling.max_completion_length
        if count := without_room([len(ids) for ids in prompts], limit, positions):
            cramped.append(f"{count:,} {of_task} leave less than max_completion_length={limit}")
    if recipe.respond is not None and (
        count := too_long(encoded([row.id for row in rows], [row.prompt for row in rows]))
    ):
        said.append(
            f"{count:,} of the {len(rows):,} looked at in the sources, which respond leaves out"
        )
    room = f"room for a reply in the model's {positions:,} positions"
    return "; ".join(
        [f"without {room}: {'; '.join(said)}" if said else f"all leave {room}", *cramped]
    )


def of_rlvr(seen: Seen) -> str:
    """How many prompts RLVR may train on; of the hub's sources, the first ones are looked at."""
    seen.needs("source")
    recipe, trainable = seen.recipe, seen.trainable
    assert recipe.rlvr is not None
    skills, takes_all = recipe.rlvr.skills, recipe.rlvr.prompts == "all"
    count = sum(n for skill, n in trainable.items() if not skills or skill in skills)
    later = [s.name for s in recipe.sources if isinstance(s.origin, HubSource)]
    if recipe.synthesize is not None:
        later += [task.name for task in recipe.synthesize.tasks if takes_all or task.verifier]
    if not count and not later:
        found = ", ".join(sorted(trainable)) or "none"
        if takes_all:
            raise RecipeError(
                f"no row of the sources is left to train on; skills with rows: {found}; asked for: "
                f"{', '.join(skills) or 'all'}. Ask for other skills, or leave rlvr out"
            )
        raise RecipeError(
            "no row of the sources has a verifier and a ground truth, so there is no prompt to "
            f"train on; skills with such rows: {found}; asked for: {', '.join(skills) or 'all'}. "
            "Give a source's rows a ground_truth and the source a verifier, ask for other skills, "
            "leave rlvr out, or take prompts: all where a reward model can score their completions"
        )
    what = "prompts" if takes_all else "prompts with a verifier"
    return f"{count:,} {what}" + (f", before {some(later)}" if later else "")

"""The evaluation tasks of the pocket recipe: questions that no training source can contain.

Each is built from combinations that `caravan.pocket.world.held_out` keeps from training. The
instances do not depend on the recipe's seed, so that the scores of different runs compare.
"""

from __future__ import annotations

from functools import cache

from caravan.data.records import EvalInstance, Message
from caravan.pocket import skills
from caravan.pocket.world import generator

TASKS = {
    "pocket-math": "math",
    "pocket-constraints": "precise_if",
    "pocket-atlas": "knowledge",
    "pocket-lists": "formatting",
    "pocket-chat": "chat",
}
"""Task names and the skill each asks for."""


@cache
def instances(task: str, count: int) -> tuple[EvalInstance, ...]:
    """The first `count` different questions of a task; fewer where it has no more."""
    skill = TASKS[task]
    rng = generator("evaluation", task)
    found: dict[str, EvalInstance] = {}
    for _ in range(20 * count):
        item = skills.SKILLS[skill].draw(rng, held=True)
        if item.prompt not in found:
            found[item.prompt] = EvalInstance(
                id=f"{task}/{len(found)}",
                messages=(Message(role="user", content=item.prompt),),
                ground_truth=item.ground_truth,
                skill=skill,
            )
        if len(found) == count:
            break
    return tuple(found.values())

"""Which runs are found, and in what order; on SQLite and on PostgreSQL."""

import math
import random
from datetime import timedelta

from alembic import command
from sqlalchemy import update

from caravan.evals.headlines import headlines
from caravan.registry import RecipeField, Registry, RunSearch, State, database, upgrade
from caravan.registry.models import Run, StageRun, now
from caravan.stages.context import Score


def score(task, value, metric="accuracy"):
    return Score(task, metric, value, value, value, 10)


def evaluated(registry, run_id, node, scores):
    opened = registry.open_stage_run(run_id, node, "evaluate", (run_id + node).ljust(64, "k")[:64])
    registry.start_stage_run(opened.id)
    registry.succeed_stage_run(opened.id, {}, scores=scores)
    return registry.stage_run(opened.id)


def by_headline(registry, model, newest_first):
    """The order that all scores, read one by one, give."""
    means = headlines(registry.scores(*newest_first))

    def mean(run_id):
        found = means.get(run_id, {}).get(model)
        return -math.inf if found is None or math.isnan(found.value) else found.value

    return sorted(newest_first, key=mean, reverse=True)


def test_each_word_is_part_of_an_id_an_owner_or_a_tag_whatever_its_case(registry, new_run):
    first = new_run("pocket", owner="Åsa", tags=["Baseline", "100%"])
    second = new_run("other_one", owner="ben", tags=["1000"])

    def found(*words):
        return registry.find_runs(RunSearch(words=words))

    assert found() == [second, first]
    assert found("POCKET") == found("åsa") == found("baseline", "pock") == [first]
    assert found("100") == [second, first]
    assert found("100%") == [first]
    assert found("other_o") == [second]
    assert found("othersone") == found("pocket", "ben") == []


def test_a_tag_is_found_by_itself(registry, new_run):
    tags = ["İstanbul", "ΣΑΣ", "STRASSE", "50%_off", "back\\slash", "O'Brien", 'say "x"', "'; --"]
    runs = {tag: new_run(tags=[tag]) for tag in tags}
    for tag, run_id in runs.items():
        assert registry.find_runs(RunSearch(words=[tag])) == [run_id], tag


def test_states_and_names_are_any_of_those_given(registry, new_run):
    runs = {state: new_run(state.value) for state in (State.SUCCEEDED, State.FAILED)}
    for state, run_id in runs.items():
        registry.update_run_state(run_id, state)
    pending = new_run("pending")

    def found(**search):
        return registry.find_runs(RunSearch(**search))

    assert found(states=[State.FAILED]) == [runs[State.FAILED]]
    assert found(states=[State.PENDING, State.SUCCEEDED]) == [pending, runs[State.SUCCEEDED]]
    assert found(names=["failed", "pending"]) == [pending, runs[State.FAILED]]
    assert found(names=["failed"], states=[State.PENDING]) == []
    assert registry.run_names() == ["failed", "pending", "succeeded"]


def test_a_live_run_is_found_by_the_state_that_its_heartbeats_give_it(registry, new_run):
    silent, beating, queued = new_run("silent"), new_run("beating"), new_run("queued")
    for run_id in (silent, beating, queued):
        registry.update_run_state(run_id, State.RUNNING)
    registry.set_backend_run(queued, "abc")  # whose backend knows
    registry.stale_after_seconds = 0.0

    def found(state):
        return registry.find_runs(RunSearch(states=[state]))

    assert found(State.INTERRUPTED) == [beating, silent]
    assert found(State.RUNNING) == [queued]
    registry.stale_after_seconds = 60.0
    assert found(State.INTERRUPTED) == []
    assert found(State.RUNNING) == [queued, beating, silent]


def test_a_stage_that_beats_keeps_its_run_from_being_found_interrupted(registry, new_run):
    run_id = new_run()
    registry.update_run_state(run_id, State.RUNNING)
    opened = registry.open_stage_run(run_id, "sft", "sft", "k" * 64)
    with registry._writer.begin() as connection:  # time passes
        for table in (Run, StageRun):
            connection.execute(update(table).values(heartbeat_at=now() - timedelta(hours=1)))
    assert registry.find_runs(RunSearch(states=[State.RUNNING])) == []
    registry.heartbeat(opened.id)

    assert registry.find_runs(RunSearch(states=[State.RUNNING])) == [run_id]


def test_a_field_of_the_recipe_or_the_word_itself_is_asked_for(registry):
    runs = [
        registry.create_run({"dpo": {"beta": beta}}, name="r", seed=1, recipe_digest="d", tags=tags)
        for beta, tags in ((1.0, []), (2.0, []), (3.0, ["dpo.beta=2"]))
    ]
    bare = registry.create_run({}, name="r", seed=1, recipe_digest="d")
    asked = []

    def holds(section):
        asked.append(section)
        return section is not None and section["beta"] == 2.0

    found = registry.find_runs(RunSearch(fields=[("dpo.beta=2", RecipeField("dpo", holds))]))

    assert found == [runs[2], runs[1]]
    assert bare not in found
    assert asked == [None, {"beta": 2.0}, {"beta": 1.0}]


def test_the_best_come_first_as_their_scores_say(registry, new_run):
    drawn = random.Random(17)
    runs = [new_run() for _ in range(12)]
    for run_id in runs[:10]:
        parts = ["evaluate-dpo", "evaluate-dpo-2"][: drawn.randint(1, 2)]
        for part in parts:
            scores = [
                score(f"{part}-{i}", drawn.random(), metric)
                for i in range(drawn.randint(1, 4))
                for metric in ("rating", "strict", "loose")[drawn.randint(0, 1) :]
            ]
            evaluated(registry, run_id, part, scores)
        evaluated(registry, run_id, "evaluate-dpo-best", [score("math", drawn.random())])
    evaluated(registry, runs[10], "evaluate-dpo", [score("math", math.nan), score("code", 1.0)])
    evaluated(registry, runs[11], "evaluate-dpo", [score("chat", 5.0, "rating")])
    newest_first = registry.find_runs(RunSearch())

    found = registry.find_runs(RunSearch(best="dpo"))

    assert found == by_headline(registry, "dpo", newest_first)
    assert found != newest_first
    assert {*found[-2:]} == {runs[10], runs[11]}


def test_a_run_that_reused_an_evaluation_is_in_its_place(registry, new_run):
    first, middle, reusing = new_run("a"), new_run("b"), new_run("c")
    origin = evaluated(registry, first, "evaluate-sft", [score("math", 0.9)])
    evaluated(registry, middle, "evaluate-sft", [score("math", 0.5)])
    opened = registry.open_stage_run(reusing, "evaluate-sft", "evaluate", origin.key)
    registry.reuse_stage_run(opened.id, origin)

    assert registry.find_runs(RunSearch(best="sft")) == [reusing, first, middle]
    registry.open_stage_run(first, "evaluate-sft", "evaluate", "changed")  # and not done yet
    assert registry.find_runs(RunSearch(best="sft")) == [reusing, middle, first]


def test_an_older_registry_has_the_same_order_after_its_upgrade(registry_url):
    with Registry(registry_url) as registry:
        runs = [
            registry.create_run({}, name="r", seed=1, recipe_digest="d", run_id=f"r{i}")
            for i in range(4)
        ]
        for run_id, value in zip(runs, (0.2, 0.4, math.nan, 0.3), strict=True):
            scores = [score("math", value), score("math", 0.0, "loose"), score("chat", 5, "rating")]
            origin = evaluated(registry, run_id, "evaluate-sft", scores)
        reusing = registry.create_run({}, name="r", seed=1, recipe_digest="d", run_id="reusing")
        opened = registry.open_stage_run(reusing, "evaluate-sft", "evaluate", origin.key)
        registry.reuse_stage_run(opened.id, origin)
        order = registry.find_runs(RunSearch(best="sft"))
        assert order == ["r1", "reusing", "r3", "r0", "r2"]
    engine = database.connect(database.parse_url(registry_url))
    with engine.connect().execution_options(write=True) as connection, connection.begin():
        command.downgrade(database.alembic_config(connection), "0009")
    engine.dispose()

    upgrade(registry_url)

    with Registry(registry_url) as registry:
        assert registry.find_runs(RunSearch(best="sft")) == order


def test_runs_come_in_the_order_of_the_ids_without_those_that_are_gone(registry, new_run):
    first, second = new_run(), new_run(tags=["kept"])

    assert [run.id for run in registry.runs([second, "gone", first])] == [second, first]
    assert registry.runs([second])[0].tags == ("kept",)
    assert registry.runs([]) == []

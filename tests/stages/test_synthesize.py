import json
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

import pytest

from caravan.data.io import read_rows
from caravan.data.records import Conversation, Message
from caravan.data.synthesis_prompts import (
    CONSTRAINTS,
    PROMPTS,
    prompt_request,
    response_request,
    strip_prefix,
)
from caravan.errors import DataError
from caravan.inference import Generation
from caravan.pocket.personas import PERSONAS
from caravan.pocket.teacher import PROGRAMS
from caravan.recipe import ProgramEngineConfig, SynthesisTask, SynthesizeConfig
from caravan.stages import synthesize
from caravan.stages.configs import SynthesizeStageConfig
from caravan.stages.synthesis_replies import Rejection, WrittenPrompt, read_prompt, read_response
from caravan.verifiers import VERIFIERS, verify

Program = Callable[[Sequence[Message], Random], str]


def task(**values: object) -> SynthesisTask:
    given = {
        "name": "synth",
        "kind": "math",
        "skill": "math",
        "count": 40,
        "prompt_engine": "writer",
        "response_engine": "responder",
        "verifier": "gsm8k",
    }
    return SynthesisTask.model_validate(given | values)


def config(*tasks: SynthesisTask, writer: str, responder: str, **values: object):
    return SynthesizeStageConfig(
        synthesize=SynthesizeConfig.model_validate({"tasks": tasks} | values),
        engines={
            "writer": ProgramEngineConfig(program=writer),
            "responder": ProgramEngineConfig(program=responder),
        },
    )


def rows_of(context) -> list[Conversation]:
    return list(read_rows(context.outputs["dataset"], Conversation))


def report_of(context) -> dict:
    return json.loads((context.outputs["report"] / "report.json").read_text())


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch):
    """Registers a scripted engine under a name."""

    def register(name: str, function: Program) -> str:
        monkeypatch.setitem(PROGRAMS, name, function)
        return name

    return register


def test_pocket_programs_make_verified_rows_with_personas(make_context):
    tasks = (
        task(count=130),
        task(name="notes", kind="instruction_following", skill="if", verifier="ifeval", count=30),
    )
    engines = [
        config(tasks[0], writer="math-writer", responder="careful"),
        config(tasks[1], writer="instruction-writer", responder="careful"),
    ]
    for number, (made, setting) in enumerate(zip(tasks, engines, strict=True)):
        context = make_context(str(number))
        result = synthesize.run(setting, {}, context)
        rows = rows_of(context)
        assert [row.id for row in rows] == [f"{made.name}/{n}" for n in range(made.count)]
        assert result.metrics["rows"] == made.count
        assert all(row.persona in PERSONAS for row in rows)
        assert len({row.prompt for row in rows}) == made.count
        for row in rows:
            assert (row.source, row.skill, row.verifier) == (made.name, made.skill, made.verifier)
            assert verify(row.verifier, row.messages[-1].content, row.ground_truth).correct
        assert context.reported[-1] == (made.count, made.count)


def test_more_rows_than_personas_and_the_same_seed_gives_the_same_bytes(make_context):
    setting = config(task(count=250), writer="math-writer", responder="careful")
    files = []
    for name, seed in (("one", 1), ("two", 1), ("three", 2)):
        context = make_context(name, seed=seed)
        synthesize.run(setting, {}, context)
        assert len(rows_of(context)) == 250
        files.append([p.read_bytes() for out in context.outputs.values() for p in out.iterdir()])
    assert files[0] == files[1]
    assert files[0] != files[2]


def flaky_writer(messages: Sequence[Message], rng: Random) -> str:
    """A third of its prompts are unusable in one of several ways."""
    number = rng.randrange(100_000)
    bad = ["", "Math problem:", json.dumps({"prompt": "p"}), '{"prompt": 3}', "no json"]
    if rng.random() < 0.35:
        return rng.choice(bad)
    return json.dumps({"prompt": f"Math problem: what is {number}?", "ground_truth": str(number)})


def flaky_responder(messages: Sequence[Message], rng: Random) -> str:
    number = messages[-1].content.split()[-1].strip("?")
    return rng.choice(["", f"#### {number}", f"It is {number}.", "#### -1"])


def flaky(program, **values: object):
    writer = program("flaky-writer", flaky_writer)
    responder = program("flaky-responder", flaky_responder)
    return config(task(**values), writer=writer, responder=responder, max_attempts=4)


def test_rejected_attempts_are_repeated_and_counted(program, make_context):
    context = make_context()
    synthesize.run(flaky(program, count=60), {}, context)
    report = report_of(context)["synth"]
    assert report["asked"] == 60
    assert report["kept"] == len(rows_of(context)) == 60 - report["failed"]
    assert report["attempts"] == report["kept"] + sum(report["rejected"].values())
    assert set(report["rejected"]) == {
        "empty prompt",
        "no ground truth",
        "prompt is not text",
        "empty response",
        "response fails its verifier",
    }
    assert 30 < report["kept"] < 60
    for row in rows_of(context):
        assert row.prompt[0].content.startswith("what is")
    rejected = (context.outputs["report"] / "rejected.jsonl").read_text().splitlines()
    assert len(rejected) == sum(report["rejected"].values())


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9, 1.0])
def test_stopped_stage_continues_where_it_was(program, make_context, keep: float):
    setting = flaky(program, count=150)
    undisturbed = make_context("undisturbed")
    synthesize.run(setting, {}, undisturbed)
    journal = (undisturbed.workdir / "synth.jsonl").read_bytes()

    resumed = make_context("resumed")
    # killed in the middle of a write, often in the middle of a line
    written = journal[: int(len(journal) * keep)]
    (resumed.workdir / "synth.jsonl").write_bytes(written)
    asked: list[str] = []

    def counting(messages: Sequence[Message], rng: Random) -> str:
        asked.append(messages[-1].content)
        return flaky_writer(messages, rng)

    program("flaky-writer", counting)
    synthesize.run(setting, {}, resumed)
    for name, out in undisturbed.outputs.items():
        for path in out.iterdir():
            assert (resumed.outputs[name] / path.name).read_bytes() == path.read_bytes()
    assert len(asked) == journal.count(b"\n") - written.count(b"\n")


def test_no_row_at_all_is_an_error(program, make_context):
    writer = program("nothing", lambda messages, rng: "")
    with pytest.raises(DataError, match=r"no synthesised row passed.*'empty prompt': 120"):
        synthesize.run(config(task(), writer=writer, responder="careful"), {}, make_context())


def test_personas_from_a_file(tmp_path: Path, make_context):
    rows = [{"persona": "a beekeeper."}, {"persona": "a beekeeper."}, {"input persona": "a judge"}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert synthesize.load_personas("p.jsonl", tmp_path) == ["a beekeeper", "a judge"]
    (tmp_path / "bad.jsonl").write_text('{"persona": "x"}\n{"name": "x"}\n')
    with pytest.raises(DataError, match=r"bad.jsonl, row 2: no text in 'persona'"):
        synthesize.load_personas("bad.jsonl", tmp_path)


# --- requests and replies -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PROMPTS)
def test_persona_is_put_in_as_text_and_the_response_request_ends_with_the_prompt(kind: str):
    persona = "a {persona} who writes {0} and {constraints}"
    request = prompt_request(task(kind=kind, verifier=None), persona, Random(1))
    assert persona in request.messages[-1].content
    assert PROMPTS[kind].prefix in request.messages[-1].content
    assert response_request(task(kind=kind), "the prompt")[-1].content == "the prompt"


def test_constraints_of_a_request_are_what_the_answer_is_checked_by():
    made = task(kind="instruction_following", verifier="ifeval")
    counts = set()
    for seed in range(50):
        request = prompt_request(made, "a judge", Random(seed))
        counts.add(len(request.ground_truth))
        ids = [constraint["id"] for constraint in request.ground_truth]
        assert len(ids) == len(set(ids))
        VERIFIERS["ifeval"]("Some answer.", request.ground_truth)
        assert request.messages[-1].content.count("\n- ") == len(ids)
    assert counts == {1, 2, 3}


@pytest.mark.parametrize("constraint", CONSTRAINTS, ids=lambda c: c.id)
def test_every_constraint_can_be_satisfied_and_checked(constraint):
    answer = "<<TITLE>>\n* one *a* **b** *c* [x] [y] [z] [w]\nGOOD STRONG WORDS AND MORE\nP.S. hi"
    for seed in range(10):
        drawn = constraint.draw(Random(seed))
        text = answer
        if constraint.id == "detectable_format:number_bullet_lists":
            text = "* item\n" * drawn["kwargs"]["num_bullets"]
        elif constraint.id == "startend:end_checker":
            text = f"Yes. {drawn['kwargs']['end_phrase']}"
        elif drawn["kwargs"].get("postscript_marker") == "P.P.S":
            text = "Yes.\nP.P.S done"
        assert verify("ifeval", text, [drawn]).correct, drawn
        assert "{" not in constraint.describe(drawn["kwargs"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Math problem: Add.", "Add."),
        ("**Math problem:** Add.", "Add."),
        ("**Math Problem**: Add.\nMath problem: no", "Add.\nMath problem: no"),
        ("Add.", "Add."),
        ("A Math problem: Add.", "A Math problem: Add."),
    ],
)
def test_strip_prefix(text: str, expected: str):
    assert strip_prefix(text, "Math problem:") == expected


def read(text: str, finish_reason="stop", **values: object) -> WrittenPrompt:
    made = task(**values)
    request = prompt_request(made, "a judge", Random(1))
    return read_prompt(made, request, Generation(text, finish_reason))


def test_prompts_as_text_and_as_json():
    assert read("Math problem: Add 1.", verifier=None) == WrittenPrompt("Add 1.")
    fenced = '```json\n{"prompt": "Math problem: Add 1.", "ground_truth": "2"}\n```'
    assert read(fenced) == WrittenPrompt("Add 1.", "2", "gsm8k")
    named = '{"prompt": "Say it", "ground_truth": "it", "verifier": "exact_match"}'
    assert read(named, verifier=None) == WrittenPrompt("Say it", "it", "exact_match")
    constrained = read("User instruction: Go.", kind="instruction_following", verifier="ifeval")
    assert constrained.text == "Go."
    assert constrained.verifier == "ifeval"


@pytest.mark.parametrize(
    ("text", "finish_reason", "reason"),
    [
        ("Math problem: Ad", "length", "prompt cut off"),
        ("Math problem: Add 1.", "stop", "no ground truth"),
        ('{"prompt": "p", "ground_truth": []}', "stop", "unusable ground truth"),
        ('{"prompt": "p", "ground_truth": "1", "verifier": "nonsense"}', "stop", "unusable"),
    ],
)
def test_bad_prompts(text: str, finish_reason: str, reason: str):
    with pytest.raises(Rejection, match=reason):
        read(text, finish_reason)


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        ("grade_school_math", "It is 4.", "another form"),
        ("grade_school_math", "2 + 2 = 4\n#### 4", None),
        ("math", "Final Answer: The final answer is $4$. I hope it is correct.", None),
        ("code", "Use a loop.", "no Python function"),
        ("code", "x = 1", "no Python function"),
        ("code", "def f(x):\n    return x", None),
        ("code", "Here:\n```python\ndef f(x):\n    return x\n```", None),
        ("instruction_following", "Anything.", None),
        ("math", "  ", "empty response"),
    ],
)
def test_responses_without_a_verifier_are_checked_for_their_form(kind, text, reason):
    made = task(kind=kind, verifier=None)
    if reason is None:
        assert read_response(made, WrittenPrompt("p"), Generation(text, "stop")) == text
    else:
        with pytest.raises(Rejection, match=reason):
            read_response(made, WrittenPrompt("p"), Generation(text, "stop"))
    with pytest.raises(Rejection, match=r"cut off|empty"):
        read_response(made, WrittenPrompt("p"), Generation(text, "length"))

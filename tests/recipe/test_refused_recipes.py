"""What no run could be made of is refused when the recipe is read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from caravan.errors import DataError, RecipeError
from caravan.recipe.io import load_recipe, parse_recipe
from caravan.settings import Settings
from small_recipe import OWN_PAIRS, POCKET, PREFERENCES, SMALL, refusal


def selecting(every: int, tasks: str) -> str:
    return f"rlvr: {{algorithm: {{kind: grpo}}, select: {{every: {every}, tasks: {tasks}}}}}\n"


@pytest.mark.parametrize(
    ("added", "message"),
    [
        ("mix: {dataset_mixer_list: [{source: sum, count: 3}]}", "did you mean 'sums'?"),
        ("mix: {dataset_mixer_list: [sums, 1.0, sums, 5]}", "'sums' appears 2 times"),
        ("mix: {dataset_mixer_list: [sums, 1.0, chats]}", "alternates source and amount"),
        ("decontaminate: {keep_sources: [chat]}", "did you mean 'chats'?"),
        ("rlvr: {skills: [maths], algorithm: {kind: grpo}}", "did you mean 'math'?"),
        ("rlvr: {}", "add reward_model, or choose kind: grpo"),
        ("rlvr: {algorithm: {kind: grpo}, max_length: 2048}", "leaves no room for a prompt"),
        ("rlvr: {algorithm: {kind: grpo}, sampling: {top_p: 0.9}}", "leave sampling.top_p at 1"),
        ("rlvr: {algorithm: {kind: grpo}, num_train_epochs: 2}", "has no num_train_epochs"),
        ("rlvr: {algorithm: {kind: grpo}, on_non_finite: skip}", "cannot leave a step out"),
        ("rlvr: {algorithm: {kind: grpo}, sampling: {temperature: 0}}", "temperature above 0"),
        (
            "rlvr: {algorithm: {kind: grpo, loss_type: cispo, epsilon: 0.1}}",
            "epsilon has no part in it; leave it out",
        ),
        ("rlvr: {algorithm: {kind: grpo}, lora: {dropout: 0.1}}", "leave lora.dropout at 0"),
        ("rlvr: {algorithm: {kind: grpo}, lora: {}, zero_stage: 3}", "take zero_stage 2 or less"),
        (
            "rlvr: {algorithm: {kind: grpo}, lora: {}, rollouts: {kind: vllm}}",
            "with lora leave rollouts at {kind: transformers}",
        ),
        (
            "rlvr: {algorithm: {kind: grpo}, lora: {}, quantization: nf4}",
            "leave quantization to sft and dpo",
        ),
        (selecting(400, "[gsm8k]"), "select.every 400 keeps no policy before the last of"),
        (
            selecting(9, "[gsm]"),
            "rlvr.select.tasks[0]: 'gsm' is no task under evaluate.tasks; did you mean 'gsm8k'?",
        ),
        ("dpo: {select: {every: 9, tasks: [gsm]}}", "dpo.select.tasks[0]: 'gsm' is no task under"),
        ("dpo: {max_steps: 9, select: {every: 9, tasks: [gsm8k]}}", "select.every 9 keeps no"),
        ("dpo: {select: {every: 9}}", "select has no tasks: name some, or let sft and dpo select"),
        (
            "rlvr: {algorithm: {kind: grpo}, select: {every: 9}}",
            "select has no tasks: name some, or let sft and dpo select",
        ),
        ("reward_model: {select: {every: 9, tasks: [gsm8k]}}", "select"),
        (selecting(9, "[gsm8k, gsm8k]"), "rlvr.select.tasks[1]: 'gsm8k' is there twice"),
        (
            "rlvr: {algorithm: {kind: grpo}, reward_model_multiplier: 1.0}",
            "rlvr.reward_model_multiplier: the recipe has no reward model to score with; add",
        ),
        (
            "rlvr: {algorithm: {kind: grpo}, prompts: all}",
            "set reward_model_multiplier above 0, or leave prompts at verifiable",
        ),
        ("rlvr: {algorithm: {kind: grpo}, verification_reward: 0}", "so nothing is rewarded"),
        ("rlvr: {algorithm: {kind: grpo}, reward_model_multiplier: -1}", "equal to 0"),
        (
            "rlvr: {algorithm: {kind: grpo}, rollouts: {kind: vllm, tensor_parallel_size: 2}, "
            "resources: {gpus: 3}}",
            "tensor_parallel_size 2 does not divide the 3 training processes of a node",
        ),
        (
            "dpo: {}",
            "it needs pair.sources with pairs of your own, or sample_prompts, respond, judge",
        ),
        ("reward_model: {}", "reward_model: trains on pairs, so it needs pair.sources"),
        ("pair: {}", "pair: needs sample_prompts, respond and judge, which make what it pairs"),
        (
            PREFERENCES.replace("pair: {}", f"pair: {{sources: [{OWN_PAIRS}]}}"),
            "so sample_prompts, respond and judge would make others",
        ),
        (
            f"pair: {{sources: [{OWN_PAIRS}, {OWN_PAIRS}]}}",
            "'mine' appears 2 times",
        ),
        (
            PREFERENCES.replace("engine: teacher}]", "engine: techer}]"),
            "respond.pool[1].engine: 'techer' is not in engines; did you mean 'teacher'?",
        ),
        (PREFERENCES.replace("name: teacher", "name: own"), "'own' appears 2 times"),
        (PREFERENCES.replace("pool:", "models_per_prompt: 3, pool:"), "does not fit a pool of 2"),
        (
            "synthesize: {tasks: [{name: sums, kind: math, skill: math, count: 1, "
            "prompt_engine: teacher, response_engine: teacher}]}",
            "'sums' is also the name of a source",
        ),
    ],
)
def test_a_contradiction_between_sections_is_refused(added: str, message: str) -> None:
    assert message in refusal(SMALL + added)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (
            "[{name: gsm8k, task: gsm8k, suite: unseen}]",
            "rlvr.select.tasks[0]: 'gsm8k' is of the suite unseen, whose scores tell nothing new "
            "of a model that was chosen by them; take a task of the suite dev",
        ),
        (
            "[{name: gsm8k, task: gsm8k}, {name: chat, task: pocket-chat}]",
            "rlvr.select.tasks: chat has ratings from 1 to 5, the others shares from 0 to 1",
        ),
    ],
)
def test_rlvr_selects_by_development_tasks_of_one_scale(tasks: str, message: str) -> None:
    names = "[gsm8k, chat]" if "chat" in tasks else "[gsm8k]"
    text = SMALL.replace("\n    - {name: gsm8k, task: gsm8k}", f" {tasks}")
    assert message in refusal(text + selecting(9, names))
    assert parse_recipe(SMALL + selecting(9, "[gsm8k]"))


@pytest.mark.parametrize(
    ("left_out", "added", "message"),
    [
        (
            "evaluate",
            selecting(9, "[gsm8k]"),
            "rlvr.select.tasks: gsm8k would be tasks of evaluate, which the recipe lacks; add it",
        ),
        ("curate", "", "sft: needs the rows of sources; add curate, or leave sft out"),
        (
            "sft",
            PREFERENCES,
            "respond.pool[0].artifact: the recipe has no sft; take artifact: base",
        ),
        ("sft", PREFERENCES, "sample_prompts: the recipe has no sft, so no prompt is used in it"),
    ],
)
def test_a_section_that_another_one_needs_cannot_be_left_out(
    left_out: str, added: str, message: str
) -> None:
    assert message in refusal(SMALL + added, f"{left_out}=null")


def test_a_source_of_pairs_may_lose_contaminated_rows_only() -> None:
    pairs = f"pair: {{sources: [{OWN_PAIRS}]}}\n"
    assert parse_recipe(f"{SMALL}{pairs}decontaminate: {{keep_sources: [mine]}}")
    refused = refusal(f"{SMALL}{pairs}decontaminate: {{keep_sources: [min]}}")
    assert "'min' is no source, no synthesis task and no source of pairs; did you mean" in refused


def test_rows_that_nothing_reads_are_not_made_and_that_is_told(tmp_path: Path, caplog) -> None:
    recipe = parse_recipe(SMALL, ["sft=null"])
    assert recipe.sources == ()
    (tmp_path / "r.yaml").write_text(SMALL)
    with caplog.at_level("WARNING"):
        load_recipe(tmp_path / "r.yaml", ["sft=null"])
    assert "curate: no stage reads its rows" in caplog.text


PROGRAM = "  robot: {kind: program, program: carefull}\n"
GENERATED = "{kind: generated, generator: math-boook, count: 3}"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("curate:", PROGRAM + "curate:", "engines.robot.program: there is no program 'carefull'; "
         "did you mean 'careful'?"),
        ("{kind: files, paths: [sums.jsonl]}", GENERATED, "curate.sources[0].origin.generator: "
         "there is no generator 'math-boook'; did you mean 'math-book'?"),
        ("skill: math", "skill: math\n      verifier: gsm9k", "curate.sources[0].verifier: there "
         "is no verifier 'gsm9k'; did you mean 'gsm8k'?"),
        ("task: gsm8k", "task: verify, path: a.jsonl, verifier: gsm9k", "evaluate.tasks[0].verifier"
         ": there is no verifier 'gsm9k'; did you mean 'gsm8k'?"),
        ("task: gsm8k", "task: verify, path: a.jsonl", "evaluate.tasks[0].verifier: `verify` "
         "scores with a verifier; name one; there are: gsm8k, math, ifeval"),
        ("task: gsm8k", "task: gsm8k, verifier: math", "evaluate.tasks[0].verifier: task 'gsm8k' "
         "has its own way to score"),
        ("  sources:", "  allowed_licenses: [Apache-2.0]\n  sources:", "curate.sources[1].license: "
         "source chats has the licence 'MIT', which curate.allowed_licenses does not allow"),
    ],
)  # fmt: skip
def test_a_name_that_nothing_has_is_refused_before_anything_runs(old, new, message) -> None:
    assert old in SMALL
    assert message in refusal(SMALL.replace(old, new))


def test_a_verifier_of_ones_own_is_named_like_those_that_are_here(tmp_path: Path) -> None:
    own = "verifiers: {polite: 'own.py:is_polite', kind: own.py}\n"
    asked = "{name: qa, task: verify, path: qa.jsonl, verifier: kind}"
    text = own + SMALL.replace("skill: math", "skill: math\n      verifier: polite")
    path = tmp_path / "r.yaml"
    path.write_text(text.replace("{name: gsm8k, task: gsm8k}", asked))
    with pytest.raises(RecipeError) as refused:
        load_recipe(path)
    assert str(refused.value).splitlines() == [
        f"{path}:1: verifiers.{name}: cannot read {tmp_path / 'own.py'}: No such file or "
        "directory; correct the path or the file"
        for name in ("polite", "kind")
    ]
    (tmp_path / "own.py").write_text("def is_polite(completion, ground_truth): ...\n")
    with pytest.raises(
        RecipeError, match=r"verifiers\.kind: .*has no function 'verify', but is_po"
    ):
        load_recipe(path)
    (tmp_path / "own.py").write_text("def is_polite(c, g): ...\ndef verify(c, g): ...\n")
    assert load_recipe(path).curate.sources[0].verifier == "polite"


@pytest.mark.parametrize(
    ("verifiers", "message"),
    [
        ("{math: own.py}", "verifiers.math: Caravan brings a verifier of this name"),
        ("{polite: own}", "verifiers.polite: expected a Python file, and where it is not 'verify' "
         "its function: polite.py or polite.py:is_polite; got 'own'"),
        ("{polite: 'own.py:is polite'}", "verifiers.polite: expected a Python file"),
        ("{polite: own.py}\nsynthesize: {tasks: [{name: t, kind: math, skill: math, count: 1, "
         "prompt_engine: teacher, response_engine: teacher, verifier: polite}]}",
         "synthesize.tasks[0].verifier: there is no verifier 'polite'"),
    ],
)  # fmt: skip
def test_what_is_no_verifier_of_ones_own_is_refused(verifiers: str, message: str) -> None:
    assert message in refusal(f"verifiers: {verifiers}\n{SMALL}")


PRETRAINED = "{kind: pretrained, hidden_size: 64, num_attention_heads: 4, vocab_size: 258}"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("64", "66", "base_model: hidden_size=66 does not give each of 4 heads an even number"),
        ("64", "68", "take a multiple of 8, such as 64"),
        ("258", "257", "base_model.vocab_size: expected greater than or equal to 258; got 257"),
        ("258", "1000000000", "base_model.vocab_size: expected less than or equal to 200000"),
    ],
)
def test_a_model_that_cannot_be_made_is_refused_before_the_run(old, new, message) -> None:
    text = SMALL.replace("{kind: imported, model_name_or_path: base}", PRETRAINED)
    assert parse_recipe(text).base_model.kind == "pretrained"
    assert message in refusal(text.replace(old, new))


def test_the_smallest_vocabulary_is_the_one_that_a_tokenizer_can_have() -> None:
    from caravan.training.bpe import train_tokenizer

    assert len(train_tokenizer(["text"], vocab_size=258, model_max_length=8)) == 258
    with pytest.raises(DataError):
        train_tokenizer(["text"], vocab_size=257, model_max_length=8)


def test_a_task_that_there_is_not_is_told_when_the_recipe_is_read_and_refused_to_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from caravan_pipelines.launch.local import create_run

    path = tmp_path / "r.yaml"
    path.write_text(SMALL.replace("task: gsm8k", "task: gsm9k, verifier: math"))
    said = "evaluate.tasks[0].task: there is no evaluation task 'gsm9k'; did you mean 'gsm8k'?"
    recipe = load_recipe(path)

    assert said in caplog.text
    settings = Settings(home=tmp_path / "home")
    with pytest.raises(RecipeError, match=re.escape(said)):
        create_run(recipe, settings, recipe_dir=tmp_path)
    assert not settings.home.exists()


def test_a_task_without_files_or_judge_is_refused_to_run_and_told_how_to_get_them(
    tmp_path: Path,
) -> None:
    from caravan_pipelines.launch.local import create_run

    tasks = (
        "[{name: gsm8k, task: gsm8k}, {name: xstest, task: xstest, path: xstest.csv}, "
        "{name: chat, task: pocket-chat}, {name: href, task: href, path: r.yaml}, "
        "{name: truth, task: truthfulqa_mc2, path: r.yaml, num_generations: 2}]"
    )
    text = SMALL.replace("evaluate:\n  tasks:\n    - {name: gsm8k, task: gsm8k}\n", "")
    path = tmp_path / "r.yaml"
    path.write_text(f"{text}evaluate: {{tasks: {tasks}}}\n")
    recipe = load_recipe(path)
    settings = Settings(home=tmp_path / "home")
    with pytest.raises(RecipeError) as refused:
        create_run(recipe, settings, recipe_dir=tmp_path)
    lines = str(refused.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == [
        "evaluate.tasks[0].path",
        "evaluate.tasks[1].path",
        "evaluate.tasks[4].num_generations",
        "evaluate.judge",
        "evaluate.judge",
        "evaluate.safety_judge",
    ]
    assert "task gsm8k reads files: set its `path` to test.jsonl" in lines[0]
    assert f"{tmp_path / 'xstest.csv'} is not there; put xstest_prompts.csv there" in lines[1]
    assert "a classifier decides about xstest; add safety_judge: {engine: wildguard}" in lines[5]


def test_a_safety_judge_names_an_engine_of_the_recipe() -> None:
    text = SMALL.replace("evaluate:\n", "evaluate:\n  safety_judge: {engine: wildgard}\n")
    assert "evaluate.safety_judge.engine: 'wildgard' is not in engines" in refusal(text)


def test_a_safety_judge_is_not_asked_in_another_template() -> None:
    text = SMALL.replace("evaluate:\n", "evaluate:\n  safety_judge: {engine: guard}\n")
    guard = "  guard: {kind: vllm, model_name_or_path: g, chat_template: %s}\n"
    text = text.replace("engines:\n", "engines:\n" + guard)
    assert parse_recipe(text % "tulu").evaluate is not None
    assert "engines.guard.chat_template: the safety judge is asked in WildGuard's format" in (
        refusal(text % "model")
    )


def test_no_other_benchmark_is_suggested_for_one_that_is_not_here(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    slips = {"mmlu-pro": "; did you mean 'mmlu_pro'?", "piqa": "; there are: "}
    for name, hint in slips.items():
        (tmp_path / "r.yaml").write_text(SMALL.replace("task: gsm8k", f"task: {name}"))
        caplog.clear()
        load_recipe(tmp_path / "r.yaml")
        assert f"there is no evaluation task {name!r}{hint}" in caplog.text


def test_a_contradiction_names_its_line() -> None:
    text = SMALL + "decontaminate:\n  keep_sources:\n    - chat\n"
    assert refusal(text).startswith("r.yaml:22: decontaminate.keep_sources[0]: 'chat'")


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("rlvr.max_steps", 10**20, "cannot be stored; give a smaller one"),
        ("sft.num_train_epochs", 1e308, "less than or equal to 10000"),
    ],
)
def test_numbers_that_no_run_could_take_are_refused(field: str, value: float, words: str) -> None:
    with pytest.raises(RecipeError, match=words) as error:
        load_recipe(POCKET, [f"{field}={value}"])
    assert field in str(error.value)

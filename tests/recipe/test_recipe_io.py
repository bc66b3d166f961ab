import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from caravan.errors import DataError, RecipeError
from caravan.recipe import GRPOConfig, PPOConfig, Recipe
from caravan.recipe.io import (
    ABSENT,
    InvalidRecipeError,
    canonical_json,
    diff,
    json_schema,
    load_recipe,
    parse_recipe,
    recipe_digest,
    recipe_from_data,
)
from caravan.settings import Settings

SMALL = """\
name: small
base_model: {kind: imported, model_name_or_path: base}
engines:
  teacher: {kind: openai, base_url: "http://localhost", model: m}
curate:
  sources:
    - name: sums
      origin: {kind: files, paths: [sums.jsonl]}
      license: MIT
      skill: math
    - name: chats
      origin: {kind: files, paths: [chats.jsonl]}
      license: MIT
      skill: chat
sft:
  learning_rate: 5e-7
evaluate:
  tasks:
    - {name: gsm8k, task: gsm8k}
"""

POCKET = Path(__file__).parents[2] / "pipelines" / "recipes" / "pocket.yaml"

PREFERENCES = """\
sample_prompts: {used_in_sft: 10, unused_in_sft: 10}
respond: {pool: [{name: own, artifact: sft}, {name: teacher, engine: teacher}]}
judge: {judge: {kind: llm, engine: teacher}}
pair: {}
"""

OWN_PAIRS = "{name: mine, origin: {paths: [p.jsonl], kind: files}, license: MIT, skill: chat}"


def selecting(every: int, tasks: str) -> str:
    return f"rlvr: {{algorithm: {{kind: grpo}}, select: {{every: {every}, tasks: {tasks}}}}}\n"


def refusal(text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, overrides, file="r.yaml")
    return str(caught.value)


def test_a_rate_without_a_point_is_a_number() -> None:
    assert parse_recipe(SMALL).sft.learning_rate == 5e-7


def test_a_key_given_twice_is_refused_with_both_lines() -> None:
    text = SMALL + "sft:\n  beta: 1\n"
    assert refusal(text) == "r.yaml:20: sft is given twice, first on line 15; keep one"


def test_two_names_of_one_key_are_a_key_given_twice() -> None:
    text = SMALL.replace("5e-7", "5e-7\n  max_length: 10\n  max_seq_length: 10")
    assert "sft.max_length is given twice, first on line 17" in refusal(text)


def test_max_seq_length_is_max_length() -> None:
    text = SMALL.replace("5e-7", "5e-7\n  max_seq_length: 77")
    assert parse_recipe(text).sft.max_length == 77
    assert parse_recipe(text, ["sft.max_length=78"]).sft.max_length == 78
    assert parse_recipe(SMALL, ["sft={max_seq_length: 79}"]).sft.max_length == 79


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sft.lerning_rate=1", "unknown key 'lerning_rate'; did you mean 'learning_rate'?"),
        ("curate.sources.sums.lisence=MIT", "unknown key 'lisence'; did you mean 'license'?"),
        ("engines.teacher.bse_url=x", "unknown key 'bse_url'; did you mean 'base_url'?"),
        ("sft.learning_rate=fast", "sft.learning_rate: expected a number; got 'fast' (text)"),
        ("sft.learning_rate=yes", "sft.learning_rate: expected a number; got True (bool)"),
        ("sft.sequences_per_step=1.5", "expected a whole number; got 1.5 (a number)"),
        (
            "sft.tokens_per_pass=lots",
            "sft.tokens_per_pass: expected a whole number above 0, or auto; got 'lots'",
        ),
        ("sft.weight_decay=.inf", "sft.weight_decay: expected a finite number; got inf"),
        ("dpo.beta=.inf", "dpo.beta: expected a finite number; got inf"),
        ("sft.bf16=7", "sft.bf16: expected true or false; got 7 (a number)"),
        ("name=5", "name: expected text; got 5 (a number); put it in quotes"),
        ("base_model=", "base_model: expected a mapping; got nothing"),
        ("sft.warmup_ratio=2", "expected less than or equal to 1; got 2 (a number)"),
        ("evaluate.tasks=[]", "evaluate.tasks: expected at least one item; got [] (a list)"),
        ("engines.teacher.kind=vlm", "unknown kind 'vlm'; did you mean 'vllm'?"),
        ("engines.other.model=m", "needs a kind: transformers, vllm, openai, program"),
        ("evaluate.tasks.mmlu.limit=1", "evaluate.tasks is a list of 1 without 'mmlu'"),
        ("evaluate.tasks.4.limit=1", "a position from 0 to 0"),
        ("name.x=1", "name is 'small', it has nothing called 'x'"),
        ("sft", "an override is dotted.path=value"),
        ("sft=[", "the value is not YAML"),
        ("seed=\x07", "the value is not YAML: the character '\\x07' is not allowed"),
        ("seed=2026-99-99", "the value is not YAML: '2026-99-99' is no timestamp"),
        ("seed=!!int abc", "the value is not YAML: 'abc' is no int"),
        ("sft=&a [*a]", "too deep or too large for a recipe"),
        ("sft={a: &a {b: *a}}", "too deep or too large for a recipe"),
        ("sft={max_length: 3, max_seq_length: 4}", "max_length is given twice"),
        ("sft={1: 2}", "the key '1' is read as int; a key must be text, quote it"),
        ("sft={[a]: 2}", "a key must be plain text"),
        ("evaluate.tasks[4].limit=1", "a position from 0 to 0"),
        ("evaluate.tasks[x].limit=1", "'tasks[x]' is no part of a path"),
        ("evaluate..tasks=1", "'' is no part of a path"),
        ("seed=9223372036854775808", "expected less than 9223372036854775808"),
    ],
)
def test_a_mistake_in_an_override_names_it_and_the_way_out(override: str, message: str) -> None:
    refused = refusal(SMALL, override)
    assert message in refused
    assert override in refused or repr(override) in refused


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 3000])
def test_an_endless_value_of_an_override_is_refused_in_a_short_sentence(value: str) -> None:
    refused = refusal(SMALL, f"seed={value}")
    assert "the value is not YAML" in refused
    assert len(refused) < 300


def test_the_largest_seed_is_the_largest_the_registry_holds() -> None:
    assert parse_recipe(SMALL, [f"seed={2**63 - 1}"]).seed == 2**63 - 1


def test_a_mistake_in_the_file_names_file_line_field_and_value() -> None:
    text = SMALL.replace("5e-7", "quick")
    assert refusal(text) == ("r.yaml:16: sft.learning_rate: expected a number; got 'quick' (text)")


def test_all_mistakes_are_told_at_once() -> None:
    text = SMALL.replace("5e-7", "quick").replace("license: MIT", "licence: MIT")
    with pytest.raises(InvalidRecipeError) as caught:
        parse_recipe(text, file="r.yaml")
    problems = caught.value.problems
    assert [p.path for p in problems] == [
        "curate.sources[0].license",
        "curate.sources[0].licence",
        "curate.sources[1].license",
        "curate.sources[1].licence",
        "sft.learning_rate",
    ]
    assert problems[1].place == "r.yaml:9"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "r.yaml: expected a mapping of sections"),
        ("- a\n- b\n", "r.yaml: expected a mapping of sections"),
        ("name: [\n", "r.yaml:2: not YAML"),
        ("name: a\nname: b\n", "r.yaml:2: name is given twice"),
        ("name: &a [*a]\n", "r.yaml:1: too deep or too large"),
        (
            "a: &a [1,1,1,1,1,1,1,1]\n"
            + "".join(
                f"{y}: &{y} [{','.join(['*' + x] * 8)}]\n"
                for x, y in zip("abcdef", "bcdefg", strict=True)
            ),
            "too deep or too large",
        ),
        ("name: !!python/object:os.system x\n", "r.yaml:1: not YAML"),
        ("name: a\nseed: \x00\n", "r.yaml:2: not YAML: the character '\\x00' is not allowed"),
        ("name: a\nseed: 2026-99-99\n", "r.yaml:2: not YAML: '2026-99-99' is no timestamp"),
        ("name: a\nseed: !!int abc\n", "r.yaml:2: not YAML: 'abc' is no int"),
        ("name: a\nseed: !!bool abc\n", "r.yaml:2: not YAML: 'abc' is no bool"),
        (f"name: a\nseed: {'9' * 5000}\n", "r.yaml:2: not YAML: '999"),
        (f"name: a\nseed: {'[' * 3000}\n", "r.yaml:2: not YAML: too deeply nested"),
        ("name: a\n1: x\n", "r.yaml:2: the recipe: the key '1' is read as int"),
        ("sft:\n  yes: x\n", "r.yaml:2: sft: the key 'yes' is read as bool"),
        ("name: a\n~: x\n", "r.yaml:2: the recipe: the key '~' is read as null"),
    ],
)
def test_what_is_not_a_recipe_is_refused(text: str, message: str) -> None:
    assert message in refusal(text)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"nothing\.yaml: there is no such recipe file"):
        load_recipe(tmp_path / "nothing.yaml")


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
        (selecting(400, "[gsm8k]"), "select.every 400 keeps no policy before the last of"),
        (
            selecting(9, "[gsm]"),
            "rlvr.select.tasks[0]: 'gsm' is no task under evaluate.tasks; did you mean 'gsm8k'?",
        ),
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
        "{name: chat, task: pocket-chat}, {name: href, task: href, path: r.yaml}]"
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
        "evaluate.judge",
        "evaluate.judge",
        "evaluate.safety_judge",
    ]
    assert "task gsm8k reads files: set its `path` to test.jsonl" in lines[0]
    assert f"{tmp_path / 'xstest.csv'} is not there; put xstest_prompts.csv there" in lines[1]
    assert "a classifier decides about xstest; add safety_judge: {engine: wildguard}" in lines[4]


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


def test_the_four_preference_stages_together_are_a_recipe() -> None:
    recipe = parse_recipe(SMALL + PREFERENCES + "dpo: {}\nreward_model: {}\nrlvr: {}\n")
    assert recipe.rlvr is not None
    assert recipe.rlvr.algorithm == PPOConfig()


def test_the_flat_mixer_list_of_open_instruct_is_understood() -> None:
    recipe = parse_recipe(SMALL + "mix: {dataset_mixer_list: [sums, 0.5, chats, 500]}")
    first, second = recipe.mix.dataset_mixer_list
    assert (first.source, first.weight, first.count) == ("sums", 0.5, None)
    assert (second.source, second.weight, second.count) == ("chats", None, 500)


def test_overrides_reach_into_lists_by_name_and_by_position() -> None:
    recipe = parse_recipe(
        SMALL,
        [
            "evaluate.tasks.gsm8k.limit=5",
            "curate.sources.1.skill=talk",
            "seed=4",
            "curate.sources[0].skill=sum",
            "curate.sources[1].origin.paths[0]=other.jsonl",
        ],
    )
    assert recipe.evaluate.tasks[0].limit == 5
    assert [source.skill for source in recipe.curate.sources] == ["sum", "talk"]
    assert recipe.curate.sources[1].origin.paths == ("other.jsonl",)
    assert recipe.seed == 4


def test_an_override_of_kind_leaves_the_options_of_the_old_kind_behind() -> None:
    text = SMALL + "rlvr: {algorithm: {kind: ppo, gamma: 0.9}}\nreward_model: {}\n" + PREFERENCES
    recipe = parse_recipe(text, ["rlvr.algorithm.kind=grpo", "rlvr.algorithm.num_generations=4"])
    assert recipe.rlvr is not None
    assert recipe.rlvr.algorithm == GRPOConfig(num_generations=4)


def test_a_recipe_extends_another(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(SMALL + "rlvr: {algorithm: {kind: grpo}, beta: 0.3}\n")
    child = tmp_path / "child.yaml"
    child.write_text(
        "extends: base.yaml\nname: child\nsft: {max_length: 9}\n"
        "evaluate: {tasks: [{name: math, task: math}]}\nrlvr: null\n"
    )
    base, derived = load_recipe(tmp_path / "base.yaml"), load_recipe(child)
    assert derived.sft == base.sft.derive(max_length=9)  # mappings merge
    assert [task.name for task in derived.evaluate.tasks] == ["math"]  # lists replace
    assert derived.rlvr is None  # null leaves a section out
    assert parse_recipe(child.read_text(), directory=tmp_path) == derived


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


def test_a_text_extends_recipes_of_its_directory_only(tmp_path: Path) -> None:
    (tmp_path / "private.yaml").write_text("seed: s3cret\n")
    (tmp_path / "recipes").mkdir()
    for name in ("../private.yaml", str(tmp_path / "private.yaml")):
        with pytest.raises(RecipeError, match="is not one of the recipes there") as error:
            parse_recipe(f"extends: {name}", directory=tmp_path / "recipes")
        assert "s3cret" not in str(error.value)


def test_another_kind_replaces_what_it_extends(tmp_path: Path) -> None:
    text = SMALL + "rlvr: {algorithm: {kind: ppo, gamma: 0.9}, beta: 0.3}\n"
    (tmp_path / "base.yaml").write_text(text)
    derived = parse_recipe(
        "extends: base.yaml\nrlvr: {algorithm: {kind: grpo}}", directory=tmp_path
    )
    assert derived.rlvr is not None
    assert (derived.rlvr.algorithm, derived.rlvr.beta) == (GRPOConfig(), 0.3)


def test_a_mistake_in_what_is_extended_is_found_where_it_was_made(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(SMALL.replace("5e-7", "quick"))
    (tmp_path / "child.yaml").write_text("extends: base.yaml\nname: child\n")
    with pytest.raises(RecipeError, match=r"base\.yaml:16: sft\.learning_rate"):
        load_recipe(tmp_path / "child.yaml")


def test_extending_in_a_circle_or_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(RecipeError, match=r"a\.yaml -> b\.yaml -> a\.yaml"):
        load_recipe(tmp_path / "a.yaml")
    (tmp_path / "c.yaml").write_text("name: c\nextends: d.yaml\n")
    with pytest.raises(RecipeError, match=r"c\.yaml:2: extends: there is no file .*d\.yaml"):
        load_recipe(tmp_path / "c.yaml")


def test_the_canonical_form_reads_back_and_has_one_digest() -> None:
    recipe = parse_recipe(SMALL)
    again = recipe_from_data(json.loads(canonical_json(recipe)))
    assert again == recipe
    assert recipe_digest(again) == recipe_digest(recipe)
    assert re.fullmatch("[0-9a-f]{64}", recipe_digest(recipe))


@given(seed=st.integers(0, 2**31), rate=st.floats(1e-8, 1.0))
def test_different_recipes_have_different_digests(seed: int, rate: float) -> None:
    recipe = parse_recipe(SMALL)
    other = parse_recipe(SMALL, [f"seed={seed}", f"sft.learning_rate={rate}"])
    assert (recipe_digest(recipe) == recipe_digest(other)) == (recipe == other)


def test_a_spelled_out_default_changes_nothing() -> None:
    recipe = parse_recipe(SMALL)
    assert recipe_digest(parse_recipe(SMALL, ["sft.warmup_ratio=0.03"])) == recipe_digest(recipe)


def test_a_difference_names_the_field_and_both_values() -> None:
    old = parse_recipe(SMALL)
    new = parse_recipe(
        SMALL,
        ["sft.max_length=9", "curate.sources.sums.name=adds", "rlvr={algorithm: {kind: grpo}}"],
    )
    found = {d.path: (d.old, d.new) for d in diff(old, new)}
    assert found.pop("sft.max_length") == (4096, 9)
    assert found.pop("curate.sources[sums]")[1] is ABSENT
    assert found.pop("curate.sources[adds]")[0] is ABSENT
    assert found.pop("rlvr")[0] is None
    assert not found
    assert diff(old, old) == []


def test_the_schema_says_no_to_what_the_recipe_refuses() -> None:
    validator = Draft202012Validator(json_schema())
    good = json.loads(canonical_json(parse_recipe(SMALL)))
    assert validator.is_valid(good)
    assert not validator.is_valid(good | {"surprise": 1})
    assert not validator.is_valid({"name": "x"})
    assert validator.is_valid({"extends": "base.yaml", "name": "x", "sft": {"max_length": 9}})
    assert not validator.is_valid({"extends": "base.yaml", "sft": {"max_lenth": 9}})


FIRST = (
    "ImportedBase", "CurateConfig", "Source", "FileSource", "HubSource", "MixConfig", "SFTConfig",
    "DPOConfig", "RewardModelConfig", "RLVRConfig", "GRPOConfig", "PPOConfig", "EvaluateConfig",
    "EvalTask", "Sampling", "Resources",
)  # fmt: skip


def test_every_field_of_a_first_recipe_is_described_in_the_schema() -> None:
    definitions = json_schema()["$defs"]
    bare = [
        f"{name}.{field}"
        for name in FIRST
        for field, shown in definitions[name]["properties"].items()
        if field != "kind" and not shown.get("description")
    ]
    assert not bare


def test_a_field_with_another_default_is_described_as_in_its_parent() -> None:
    definitions = json_schema()["$defs"]
    described = {
        definitions[name]["properties"]["learning_rate"]["description"]
        for name in ("SFTConfig", "DPOConfig", "RewardModelConfig", "RLVRConfig")
    }
    assert described == {"Of AdamW, at its highest."}
    assert definitions["SFTConfig"]["properties"]["learning_rate"]["default"] == 5e-6


def test_the_schema_has_the_names_that_there_are() -> None:
    definitions = json_schema()["$defs"]
    task = definitions["EvalTask"]["properties"]
    assert {"gsm8k", "verify", "pocket-math"} <= set(task["task"]["examples"])
    assert {"gsm8k", "code"} <= set(task["verifier"]["examples"])
    assert {"gsm8k", "code"} <= set(definitions["Source"]["properties"]["verifier"]["examples"])


def test_every_documented_field_is_described_in_the_schema() -> None:
    fields = json_schema()["$defs"]["RLVRConfig"]["properties"]
    assert fields["beta"]["description"] == "KL penalty towards the reference policy."


def test_reading_a_recipe_imports_nothing_heavy() -> None:
    program = (
        "import sys; from caravan.recipe.io import load_recipe; load_recipe(sys.argv[1])\n"
        "heavy = {'torch', 'transformers', 'numpy', 'datasets', 'sqlalchemy', 'kfp', 'pandas'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(POCKET)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_deriving_validates() -> None:
    recipe = parse_recipe(SMALL)
    with pytest.raises(ValueError, match="greater than 0"):
        recipe.sft.derive(learning_rate=-1)
    assert isinstance(recipe.derive(seed=3), Recipe)

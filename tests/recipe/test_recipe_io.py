"""Reading a recipe: YAML, overrides, what it extends, its canonical form."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from caravan.errors import RecipeError
from caravan.recipe import GRPOConfig, PPOConfig, Recipe
from caravan.recipe.io import (
    ABSENT,
    InvalidRecipeError,
    canonical_json,
    diff,
    differing_fields,
    load_recipe,
    parse_recipe,
    recipe_digest,
    recipe_from_data,
    shown_value,
)
from small_recipe import POCKET, PREFERENCES, SMALL, refusal


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
        ("rlvr={loss_type: grpo}", "key 'loss_type'; it belongs in rlvr.algorithm of kind grpo"),
        (
            "rlvr.algorithm={kind: ppo, loss_type: grpo}",
            "it belongs in rlvr.algorithm of kind grpo",
        ),
        ("sft.rank=4", "sft.rank: unknown key 'rank'; it belongs in sft.lora"),
        ("beta=4", "beta: unknown key 'beta'; it belongs in dpo, rlvr"),
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
        ("evaluate.tasks[x].limit=1", "evaluate.tasks is a list of 1 without 'x'"),
        ("evaluate..tasks=1", "'evaluate..tasks' is no path"),
        ("evaluate.tasks[x=1", "'evaluate.tasks[x' is no path"),
        ("evaluate.tasks[]=1", "'evaluate.tasks[]' is no path"),
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


def test_paths_that_differ_in_their_ends_are_shown_so() -> None:
    shown = {shown_value(f"/mnt/shared/models/of/the/team/run-{run}/model") for run in (1, 2)}
    assert shown == {"/mnt/shared/models/o … the/team/run-1/model",
                     "/mnt/shared/models/o … the/team/run-2/model"}  # fmt: skip


def test_a_difference_names_a_field_as_an_override_may() -> None:
    recipe = parse_recipe(SMALL, ["evaluate.tasks.gsm8k.name=gsm-1.1"])
    changed = parse_recipe(canonical_json(recipe), ["evaluate.tasks[gsm-1.1].limit=5"])
    assert diff(recipe, changed) == [("evaluate.tasks[gsm-1.1].limit", None, 5)]


def test_a_section_that_a_recipe_lacks_is_a_field_besides_those_in_it() -> None:
    small, large, none = {"lora": {"r": 8}, "beta": 1}, {"lora": {"r": 16}, "beta": 1}, {"beta": 1}
    assert differing_fields([small, large]) == {"lora.r": [8, 16]}
    assert differing_fields([small, none, small]) == {"lora": [{"r": 8}, ABSENT, {"r": 8}]}
    assert differing_fields([small, none, large]) == {
        "lora": [{"r": 8}, ABSENT, {"r": 16}], "lora.r": [8, ABSENT, 16],
    }  # fmt: skip

"""What a dry run finds out about models and training data before anything starts."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from huggingface_hub import is_offline_mode
from rich.console import Console
from transformers import GPT2Config, GPT2ForSequenceClassification

from caravan.data.io import write_rows
from caravan.data.template import TEMPLATE_HASH
from caravan.errors import CaravanError
from caravan.recipe import Recipe
from caravan.recipe.io import load_recipe
from caravan.settings import Settings
from caravan.training.bpe import train_tokenizer
from caravan.training.models import new_reward_model, save_model
from caravan_command import MINI, command_here
from caravan_pipelines.cli.run import TOLD_BY_CHECKS
from caravan_pipelines.dry_run import dry_run, hub
from foreign import GEMMA, write_foreign
from tiny import SHAPE, conversations, write_inputs

SMALL = {"max_length": 64, "sequences_per_step": 4}
PREFERENCES = {
    "engines": {"teacher": {"kind": "openai", "base_url": "http://localhost", "model": "m"}},
    "sample_prompts": {"used_in_sft": 5},
    "respond": {"pool": [{"name": "own", "artifact": "sft"}]},
    "judge": {"judge": {"kind": "llm", "engine": "teacher"}},
    "pair": {},
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_inputs(tmp_path)["model"]


@pytest.fixture
def run_command(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> Callable[..., str]:
    """The command: gives what it prints and logs."""
    monkeypatch.setenv("COLUMNS", "1000")
    call = command_here(Settings(home=tmp_path / "home"), monkeypatch, capsys)
    for name in TOLD_BY_CHECKS:
        caplog.set_level(logging.WARNING, name)  # which it sets back at the end
    return lambda *arguments, code=0: call(*arguments, code=code) + caplog.text


def recipe(directory: Path, **changes: object) -> Recipe:
    """An imported model, twenty rows of a file, one task; and `changes`."""
    write_rows(directory / "rows.jsonl", conversations())
    source = {
        "name": "rows", "license": "Apache-2.0", "skill": "s",
        "origin": {"kind": "files", "paths": ["rows.jsonl"]},
    }  # fmt: skip
    data = {
        "name": "small",
        "base_model": {"kind": "imported", "model_name_or_path": "model"},
        "curate": {"sources": [source]},
        "sft": SMALL,
        "evaluate": {"tasks": [{"name": "math", "task": "pocket-math", "limit": 2}]},
    }
    path = directory / "recipe.yaml"
    path.write_text(yaml.safe_dump(data | changes))
    return load_recipe(path)


def check(found: Recipe, directory: Path) -> tuple[str, bool]:
    """What the dry run prints, and whether it was content."""
    output = io.StringIO()
    console = Console(file=output, width=1000)
    try:
        dry_run(found, directory, Settings(home=directory / "home"), console)
    except CaravanError:
        return output.getvalue(), False
    return output.getvalue(), True


def test_a_model_without_pad_token_and_template_is_said_to_get_them(
    model: Path, tmp_path: Path
) -> None:
    config = model / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"pad_token": None}))
    (model / "chat_template.jinja").write_text("{{ messages }}")
    output, content = check(recipe(tmp_path), tmp_path)
    assert content, output
    assert "has no pad token of its own, so <pad> is added" in output
    assert "base model: model; " in output
    assert "it is asked in its own chat template (" in output
    assert "template and masks: 20 rows rendered\n" in output


def test_what_every_model_is_asked_in_is_said_beforehand(model: Path, tmp_path: Path) -> None:
    write_foreign(tmp_path / "foreign", "gemma")
    engine = {"kind": "transformers", "model_name_or_path": "foreign"}
    engines = {
        "own": engine,
        "ours": engine | {"chat_template": "tulu"},
        "none": engine | {"model_name_or_path": "model"},
        "hub": engine | {"model_name_or_path": "google/gemma-2-9b-it"},
    }
    output, content = check(recipe(tmp_path, engines=engines), tmp_path)
    assert content, output
    theirs = hashlib.sha256(GEMMA.removeprefix("{{ bos_token }}").encode()).hexdigest()[:12]
    ours = f"the Tülu chat template ({TEMPLATE_HASH[:12]})"
    assert f"engine own: foreign, asked in its own chat template ({theirs}); system" in output
    assert f"engine ours: foreign, asked in {ours}\n" in output
    assert f"engine none: model, asked in {ours}\n" in output
    assert "engine hub: google/gemma-2-9b-it of the hub, asked in its own chat template" in output

    (model / "chat_template.jinja").unlink()
    strict = {"none": engine | {"model_name_or_path": "model", "chat_template": "model"}}
    output, content = check(recipe(tmp_path, engines=strict), tmp_path)
    assert not content
    assert "model: the tokenizer has no chat template, and chat_template: model asks" in output


def test_a_question_that_a_models_own_template_refuses_is_named_beforehand(tmp_path: Path) -> None:
    write_foreign(tmp_path / "model", "gemma")
    rows = [
        {"prompt": "1 + 1?", "ground_truth": "2"},
        {"messages": [{"role": "user", "content": t} for t in "ab"], "ground_truth": "2"},
    ]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"name": "sums", "task": "verify", "path": "asked.jsonl", "verifier": "gsm8k"}
    only = {"sft": None, "curate": None, "evaluate": {"tasks": [task]}}
    output, content = check(recipe(tmp_path, **only), tmp_path)
    assert not content
    assert "prompts: asked/1: the chat template of" in output
    assert "refuses it: Conversation roles must alternate" in output


def test_what_is_wrong_with_a_model_and_its_rows_is_found_together(
    model: Path, tmp_path: Path
) -> None:
    """No end token, rows that are all too long, more positions asked for than there are."""
    config = model / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"eos_token": None}))
    output, content = check(recipe(tmp_path, sft={**SMALL, "max_length": 128}), tmp_path)
    assert not content
    assert "the tokenizer has no end token; set eos_token" in output
    assert "sft.max_length=128 is more than the 64 positions of the base model" in output


def test_rows_that_are_all_longer_than_the_limit_are_found(model: Path, tmp_path: Path) -> None:
    output, content = check(recipe(tmp_path, sft={**SMALL, "max_length": 8}), tmp_path)
    assert not content
    assert "all 20 rows are longer than max_length=8" in output


def test_rows_that_will_be_cut_or_dropped_are_told_once(
    model: Path, tmp_path: Path, run_command: Callable[..., str]
) -> None:
    recipe(tmp_path)
    rows = [row.model_dump() for row in conversations()]
    rows[0]["messages"][0]["content"] *= 50
    for row in rows[1:3]:
        row["messages"][1]["content"] *= 50
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = run_command("run", str(tmp_path / "recipe.yaml"), "--dry-run")
    assert "20 rows rendered; 2 will be cut at 64 tokens; 1 will be dropped: no reply" in output
    assert "have no reply to train on" not in output


def of_the_hub(directory: Path, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> Recipe:
    """A recipe with two sources of a hub that is at `endpoint`."""
    for name in ("datasets.config.HF_ENDPOINT", "huggingface_hub.constants.ENDPOINT"):
        monkeypatch.setattr(name, endpoint)
    sources = [
        {"name": name, "license": "MIT", "skill": "s",
         "origin": {"kind": "hub", "dataset_name": f"caravan/absent-{name}"}}
        for name in ("one", "two")
    ]  # fmt: skip
    return recipe(directory, curate={"sources": sources})


def test_a_hub_that_does_not_answer_is_told_once_and_not_waited_for(
    model: Path, tmp_path: Path, run_command: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    of_the_hub(tmp_path, monkeypatch, "http://127.0.0.1:9")

    def waits(seconds: float) -> None:
        raise AssertionError(f"waits {seconds} s to try again")

    monkeypatch.setattr("time.sleep", waits)
    output = run_command("run", str(tmp_path / "recipe.yaml"), "--dry-run", code=2)
    assert output.count("cannot be reached") == 1
    assert "skipped hub: http://127.0.0.1:9 cannot be reached: " in output
    for name in ("one", "two"):
        line = f"failed  source {name}: dataset 'caravan/absent-{name}' is not in the hub's local"
        assert line in output
    assert not is_offline_mode()


def test_a_hub_that_answers_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found = of_the_hub(tmp_path, monkeypatch, f"http://127.0.0.1:{server.server_port}")
    with hub.local_cache_where_away(found, tmp_path) as away:
        assert (away, is_offline_mode()) == ("", False)
    server.shutdown()
    server.server_close()


def test_sources_are_counted_each_for_itself_and_an_empty_one_fails(
    model: Path, tmp_path: Path
) -> None:
    rows = conversations()
    write_rows(tmp_path / "three.jsonl", rows[:3])
    (tmp_path / "none.jsonl").write_text("")
    sources = [
        {"name": name, "license": "MIT", "skill": "s",
         "origin": {"kind": "files", "paths": [f"{name}.jsonl"]}}
        for name in ("rows", "three", "none")
    ]  # fmt: skip
    output, content = check(recipe(tmp_path, curate={"sources": sources}), tmp_path)
    assert not content
    assert "source rows: 20 rows" in output
    assert "source three: 3 rows" in output
    assert "source none: holds no row" in output


def test_the_page_on_bringing_your_own_data_can_be_pasted(model: Path, tmp_path: Path) -> None:
    model.rename(tmp_path / "base")
    page = (Path(__file__).parents[2] / "docs" / "your-data.md").read_text()
    [files] = re.findall(r"```bash\n(cat .*?)```", page, re.DOTALL)
    subprocess.run(["bash", "-ec", files], cwd=tmp_path, check=True)
    changed = load_recipe(tmp_path / "sft.yaml", ["sft.max_length=64"])
    output, content = check(changed, tmp_path)
    assert "source mine: 6 rows; columns not read: reviewer\n" in output
    assert "task sums: 2 instances" in output
    assert content, output


def test_what_a_run_will_not_read_train_on_or_keep_is_told_for_each_source(
    model: Path, tmp_path: Path
) -> None:
    (tmp_path / "pr.csv").write_text("prompt,response,grade\none,a,5\none,b,5\none,A,4\n")
    (tmp_path / "odd.csv").write_text("prompt,reply\ntwo,a\nthree,b\n")
    (tmp_path / "some.jsonl").write_text('{"prompt": "four", "answer": "d"}\n{"prompt": "five"}\n')
    sources = [
        {"name": name, "license": "MIT", "skill": "s", "origin": {"kind": "files", "paths": [path]}}
        for name, path in (("pr", "pr.csv"), ("odd", "odd.csv"), ("some", "some.jsonl"))
    ]  # fmt: skip
    output, content = check(recipe(tmp_path, curate={"sources": sources}), tmp_path)
    assert content, output
    assert "pr: 3 rows; to be dropped: 1 exact duplicate; columns not read: grade\n" in output
    assert (
        "odd: 2 rows; none has a reply: prompts only, not trained on in SFT; "
        "columns not read: reply\n"
    ) in output
    assert "some: 2 rows; 1 without a reply\n" in output


def test_a_source_with_a_broken_row_is_named_once(model: Path, tmp_path: Path) -> None:
    """Not once more by what would have looked at its rows, of which none is trained on."""
    rlvr = {"algorithm": {"kind": "grpo"}, "max_length": 64,
            "sampling": {"max_completion_length": 8}}  # fmt: skip
    found = recipe(tmp_path, rlvr=rlvr)
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"messages": 3}\n')
    output, content = check(found, tmp_path)
    assert not content
    assert f"failed  source rows: {tmp_path}/rows.jsonl, row 21: column 'messages'" in output
    assert output.count("failed  ") == 1
    assert "two steps of sft: the settings train" in output
    assert "skipped template and masks: not checked, as source rows failed" in output
    assert "skipped rlvr: not checked, as source rows failed" in output


def test_a_tokenizer_like_that_of_the_run_is_trained_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = []
    monkeypatch.setattr(
        "caravan.training.bpe.train_tokenizer",
        lambda *args, **kwargs: trained.append(train_tokenizer(*args, **kwargs)) or trained[-1],
    )
    output, content = check(load_recipe(MINI), tmp_path)
    assert content, output
    assert "ok      template and masks" in output
    assert "ok      prompts" in output
    assert len(trained) == 1


def test_an_error_that_nobody_foresaw_ends_its_check_and_not_the_dry_run(
    model: Path, tmp_path: Path
) -> None:
    (model / "config.json").write_text("{")
    output, content = check(recipe(tmp_path), tmp_path)
    assert not content
    assert "failed  lengths" in output
    assert "ok      two steps of sft" in output


def test_a_run_whose_own_models_are_to_be_asked_by_vllm_needs_it(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    evaluate = {"engine": "vllm", "tasks": [{"name": "math", "task": "pocket-math", "limit": 2}]}
    output, content = check(recipe(tmp_path, evaluate=evaluate), tmp_path)
    assert not content
    assert "packages: evaluate.engine: vllm needs 'vllm': install it with" in output


def test_options_whose_packages_are_missing_are_found(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    many = {"zero_stage": 3, "resources": {"gpus": 2}}
    output, content = check(recipe(tmp_path, sft={**SMALL, **many}), tmp_path)
    assert not content
    assert "sft: zero_stage above 0 needs 'deepspeed': install it with" in output
    alone = {"zero_stage": 3, "resources": {"gpus": 1}}
    output, _ = check(recipe(tmp_path, sft={**SMALL, **alone}), tmp_path)
    assert "ok      packages" in output


def test_a_layer_that_no_model_of_the_stage_has_is_found(model: Path, tmp_path: Path) -> None:
    lora = {"target_modules": ["q_proj", "c_attn"]}
    output, content = check(recipe(tmp_path, sft={**SMALL, "lora": lora}), tmp_path)
    assert not content
    assert "failed  adapters of sft: sft.lora.target_modules: no linear layer of the" in output
    assert " is called c_attn; it has down_proj, gate_proj, k_proj, o_proj, q_proj" in output

    output, content = check(recipe(tmp_path, sft={**SMALL, "lora": {}}), tmp_path)
    assert content, output
    assert "ok      adapters of sft: q_proj, k_proj, v_proj, o_proj, gate_proj" in output


def test_a_layer_that_the_value_model_lacks_is_found(model: Path, tmp_path: Path) -> None:
    shape = {"vocab_size": 320, "n_embd": 32, "n_layer": 1, "n_head": 2}
    other = GPT2ForSequenceClassification(GPT2Config(num_labels=1, pad_token_id=0, **shape))
    other.save_pretrained(tmp_path / "other")
    rlvr = {"algorithm": {"kind": "ppo"}, "lora": {"target_modules": ["q_proj"]}}
    value = {"model_name_or_path": "other"}
    found = recipe(tmp_path, **PREFERENCES, reward_model=value, rlvr=rlvr)
    output, _ = check(found, tmp_path)
    assert "failed  adapters of rlvr: rlvr.lora: the model has no linear layer" in output


def test_layers_of_a_base_that_is_yet_to_be_trained_are_known(tmp_path: Path) -> None:
    base = SHAPE.model_dump() | {"resources": {"cpus": 1}}
    lora = {"target_modules": ["c_attn"]}
    found = recipe(tmp_path, base_model=base, sft={**SMALL, "lora": lora})
    output, _ = check(found, tmp_path)
    assert "failed  adapters of sft: sft.lora.target_modules: no linear layer of the" in output


def test_pickled_weights_are_refused(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    output, content = check(recipe(tmp_path), tmp_path)
    assert not content
    assert "weights in pytorch_model.bin are pickled" in output


def test_what_is_probably_not_meant_is_told_when_the_recipe_is_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        recipe(tmp_path, **PREFERENCES, dpo={"beta": 0.1})
    assert "recipe.yaml: dpo.beta: 0.1 looks like a beta of plain DPO" in caplog.text
    caplog.clear()
    gspo = {"kind": "grpo", "importance_sampling_level": "sequence"}
    with caplog.at_level(logging.WARNING):
        recipe(tmp_path, rlvr={"algorithm": gspo})
    assert "recipe.yaml: rlvr.algorithm.epsilon: 0.2 is a range for ratios of tokens" in caplog.text
    caplog.clear()
    cispo = {"kind": "grpo", "loss_type": "cispo"}
    recipe(tmp_path, rlvr={"algorithm": {**cispo, "epsilon_high": 0.28}})
    assert "rlvr.algorithm.epsilon_high: 0.28 is the greatest ratio with cispo" in caplog.text
    caplog.clear()
    recipe(tmp_path, rlvr={"algorithm": {**gspo, "epsilon": 3e-4, "epsilon_high": 4e-4}})
    recipe(tmp_path, rlvr={"algorithm": cispo})
    assert not caplog.text
    many = {**SMALL, "resources": {"gpus": 8}}
    recipe(tmp_path, **PREFERENCES, dpo={"beta": 0.1, "loss_type": "sigmoid"}, sft=many)
    assert "looks like" not in caplog.text
    assert "sft.sequences_per_step: 4 rows for 8 processes leave 4 without work" in caplog.text


def test_prompts_without_room_for_a_reply_are_counted_and_fail_nothing(
    model: Path, tmp_path: Path
) -> None:
    rows = [{"question": "How many? " * times, "answer": "#### 3"} for times in (1, 200, 1)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"name": "gsm", "task": "gsm8k", "path": "test.jsonl"}
    found = recipe(tmp_path, evaluate={"tasks": [task]}, **PREFERENCES)
    options = [{"yes": 1, "no": 0}, {"yes": 1, "no " * 40: 0}]
    asked = [{"question": "?", "mc1_targets": {}, "mc2_targets": given} for given in options]
    (tmp_path / "mc.json").write_text(json.dumps(asked))
    truth = {"name": "truth", "task": "truthfulqa_mc2", "path": "mc.json"}
    output, _ = check(recipe(tmp_path, evaluate={"tasks": [truth]}), tmp_path)
    assert "64 positions: 1 of 2 of task truth, which count as not answered" in output
    assert "max_completion_length" not in output
    output, _ = check(found, tmp_path)
    assert "prompts: without room for a reply in the model's 64 positions: 1 of 3 of task" in output
    assert "; 2 of 3 of task gsm leave less than max_completion_length=1024" in output
    assert "looked at" not in output

    long = [row.model_dump() for row in conversations()]
    for row in long[:2]:
        row["messages"][0]["content"] *= 50
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in long))
    output, _ = check(found, tmp_path)
    assert "task gsm, which count as not answered; 2 of the 20 looked at in the sources" in output


def test_what_keeps_a_suite_from_being_run_fails_the_recipe(model: Path, tmp_path: Path) -> None:
    row = {"prompt": "2 is", "options": ["even", "odd"], "answer": "even"}
    (tmp_path / "own.jsonl").write_text(json.dumps(row) + "\n")
    own = {"name": "own", "task": "weigh", "path": "own.jsonl"}
    for task, problem in (
        (own | {"num_generations": 2}, "evaluate.tasks[0].num_generations: task own compares"),
        ({"name": "chat", "task": "pocket-chat"}, "evaluate.judge: a judge rates chat; add one"),
    ):
        output, content = check(recipe(tmp_path, evaluate={"tasks": [task]}), tmp_path)
        assert f"failed  recipe: {problem}" in output
        assert not content
    output, _ = check(recipe(tmp_path, evaluate={"tasks": [own]}), tmp_path)
    assert "ok      recipe: " in output


def test_rlvr_without_a_verifiable_prompt_of_its_skills_is_found(
    model: Path, tmp_path: Path
) -> None:
    rlvr = {"algorithm": {"kind": "grpo"}, "max_length": 64,
            "sampling": {"max_completion_length": 8}}  # fmt: skip
    output, content = check(recipe(tmp_path, rlvr=rlvr), tmp_path)
    assert not content
    assert "failed  rlvr: no row of the sources has a verifier and a ground truth" in output
    assert "skills with such rows: none; asked for: all. Give a source's rows" in output

    found = recipe(tmp_path, rlvr=rlvr)
    rows = [row.model_dump() for row in conversations()]
    for row in rows[:3]:
        row |= {"verifier": "gsm8k", "ground_truth": "3"}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    output, content = check(found, tmp_path)
    assert content, output
    assert "ok      rlvr: 3 prompts with a verifier\n" in output


def test_rlvr_against_a_reward_model_takes_all_prompts(model: Path, tmp_path: Path) -> None:
    rlvr = {"algorithm": {"kind": "grpo"}, "max_length": 64, "prompts": "all",
            "reward_model_multiplier": 1.0, "sampling": {"max_completion_length": 8}}  # fmt: skip
    output, _ = check(recipe(tmp_path, **PREFERENCES, reward_model={}, rlvr=rlvr), tmp_path)
    assert "ok      rlvr: 20 prompts\n" in output

    existing = {"model_name_or_path": "model"}
    output, content = check(recipe(tmp_path, reward_model=existing, rlvr=rlvr), tmp_path)
    assert not content
    assert "failed  reward model: " in output
    assert "LlamaForCausalLM under architectures, so this is no reward model" in output

    scored, _ = new_reward_model(model)
    save_model(scored, train_tokenizer(["a b"], vocab_size=300, model_max_length=64),
               tmp_path / "other")  # fmt: skip
    existing = {"model_name_or_path": "other"}
    output, content = check(recipe(tmp_path, reward_model=existing, rlvr=rlvr), tmp_path)
    assert not content
    assert "the reward model's tokenizer has other tokens than the policy's" in output


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        ({"base_url": "http://localhost:8000/v1"}, "ok      engine e: m at http://localhost:8000"),
        ({"base_url": "https://api.openai.com/v1"}, "failed  engine e: the environment variable"),
        (
            {"base_url": "http://localhost:8000/v1", "api_key_env": "THEIR_KEY"},
            "THEIR_KEY, which the recipe names, is not set; set it, or leave api_key_env out",
        ),
    ],
)
def test_only_a_key_that_is_needed_is_missed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    endpoint: dict[str, str], said: str,
) -> None:  # fmt: skip
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    engines = {"e": {"kind": "openai", "model": "m", **endpoint}}
    output, content = check(recipe(tmp_path, engines=engines), tmp_path)
    assert said in output
    assert content == said.startswith("ok")


def test_the_steps_of_a_dry_run_are_said_not_to_be_those_of_the_model(
    model: Path, tmp_path: Path
) -> None:
    output, _ = check(recipe(tmp_path), tmp_path)
    assert "two steps of sft: rows and settings train a small random model, which says" in output

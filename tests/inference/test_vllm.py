"""vLLM for real, where it is installed; loading it takes half a minute."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from caravan.data.io import read_rows, write_rows
from caravan.data.records import Completion, Message
from caravan.data.template import TEMPLATE_HASH, encode_prompt
from caravan.inference import TOO_LONG, EngineError, asked_in, load_engine
from caravan.inference.likelihood import log_likelihoods
from caravan.inference.transformers_engine import decode_reply
from caravan.recipe import (
    EvalTask,
    EvaluateConfig,
    PoolMember,
    Resources,
    Sampling,
    VLLMEngineConfig,
)
from caravan.stages import evaluate, respond
from caravan.stages.configs import EvaluateStageConfig, RespondStageConfig
from caravan.training.models import save_model
from foreign import write_foreign
from tiny import Context, conversations

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

PROMPTS = [(Message(role="user", content=text),) for text in ("what is 3 + 4?", "hi", "again")]


@pytest.fixture
def model(tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2,  # vLLM has no CPU kernel for heads smaller than 32
        max_position_embeddings=128, initializer_range=0.3, bos_token_id=None,
        eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def directory(model, tokenizer, tmp_path):
    save_model(model, tokenizer, tmp_path / "model")
    return tmp_path / "model"


def test_a_model_of_the_run_in_two_parts_answers_the_pools_prompts(
    directory, tmp_path, monkeypatch
):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # parts have no memory of their own
    write_rows(tmp_path / "prompts" / "rows.jsonl", conversations(3))
    config = RespondStageConfig(
        member=PoolMember(name="own", artifact="sft", num_generations=2),
        engine=None,
        own_engine="vllm",
        sampling=Sampling(temperature=1.0, max_completion_length=8),
        resources=Resources(gpus=2),
    )
    context = Context(tmp_path / "stage")
    inputs = {"prompts": tmp_path / "prompts", "model": directory}
    assert respond.run(config, inputs, context).metrics["completions"] == 6
    rows = list(read_rows(context.directory / "out" / "completions", Completion))
    expected = [(f"t/{i}", index) for i in range(3) for index in range(2)]
    assert [(row.prompt_id, row.index) for row in rows] == expected
    assert all(1 <= len(row.token_ids) == len(row.logprobs) <= 8 for row in rows)


def test_an_evaluation_has_the_length_that_its_questions_need(
    model, tokenizer, tmp_path, monkeypatch
):
    """Of more than the 4,096 tokens that an engine has where nothing is said, on either engine."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    config = model.config
    config.max_position_embeddings = 8192
    save_model(LlamaForCausalLM(config), tokenizer, tmp_path / "long")
    rows = [{"prompt": "and on " * times, "ground_truth": "on"} for times in (1, 800, 2000)]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sampling = Sampling(temperature=0.0, max_completion_length=8)
    task = EvalTask(name="own", task="verify", path="asked.jsonl", verifier="contains",
                    sampling=sampling)  # fmt: skip
    found = {}
    for engine in ("vllm", "transformers"):
        context = Context(tmp_path)
        stage = EvaluateStageConfig(evaluate=EvaluateConfig(tasks=(task,), engine=engine))
        rows = evaluate.evaluate_model(tmp_path / "long", stage, context, lambda *_: None).rows
        found[engine] = {row.id: row.finish_reason == "too_long" for row in rows}
    assert found["vllm"] == {"asked/0": False, "asked/1": False, "asked/2": True}
    assert found["vllm"] == found["transformers"]


def test_vllm_and_transformers_agree(directory, tokenizer, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    engine = load_engine(VLLMEngineConfig(model_name_or_path=str(directory), max_model_len=128))
    ours = load_engine(directory)
    greedy = Sampling(temperature=0.0, max_completion_length=16)
    told = []
    groups = engine.generate(PROMPTS, greedy, seed=1, progress=lambda *n: told.append(n))
    for prompt, (reply,) in zip(PROMPTS, groups, strict=True):
        ids = encode_prompt(tokenizer, prompt)
        row = torch.tensor([[*ids, *reply.token_ids]])
        logits = ours.model(row).logits[0, len(ids) - 1 : -1]
        chosen = logits.gather(-1, row[0, len(ids) :, None])[:, 0]
        assert (logits.amax(-1) - chosen).max() < 1e-3  # the best token, up to rounding
        assert reply.text == decode_reply(tokenizer, reply.token_ids)
        assert (reply.finish_reason == "stop") == (reply.token_ids[-1] == tokenizer.eos_token_id)
    assert told == [(3, 3)]
    long = (Message(role="user", content="and on " * 100),)
    for one in (engine, ours):
        first, second = one.generate([long, PROMPTS[0]], greedy, seed=1)
        assert first == [TOO_LONG]
        assert second[0].token_ids

    options = [["7", "seven, of course"], ["hello"], ["no" * 64]]
    weighed = [log_likelihoods(one, PROMPTS, options) for one in (engine, ours)]
    assert [len(values) for values in weighed[0]] == [2, 1, 0]
    for vllms, values in zip(*weighed, strict=True):
        assert vllms == pytest.approx(values, abs=1e-2)

    warm = Sampling(temperature=0.7, max_completion_length=16)
    sampled = engine.generate(PROMPTS, warm, n=4, seed=1)
    assert sampled == engine.generate(PROMPTS, warm, n=4, seed=1)
    for prompt, group in zip(PROMPTS, sampled, strict=True):
        assert len(group) == 4
        assert len({reply.text for reply in group}) > 1
        ids = encode_prompt(tokenizer, prompt)
        for reply in group:
            row = torch.tensor([[*ids, *reply.token_ids]])
            logits = ours.model(row).logits[0, len(ids) - 1 : -1] / 0.7
            chosen = logits.log_softmax(-1).gather(-1, row[0, len(ids) :, None])[:, 0]
            assert reply.logprobs == pytest.approx(chosen.tolist(), abs=1e-3)


def test_a_model_of_another_origin_is_asked_and_ends_as_transformers_does(tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    directory = write_foreign(tmp_path, "llama3")
    engine = load_engine(VLLMEngineConfig(model_name_or_path=str(directory), max_model_len=256))
    ours = load_engine(directory)
    asked = [(Message(role="system", content="Be brief."), *prompt) for prompt in PROMPTS]
    assert engine.format.encode_all(asked) == ours.format.encode_all(asked)
    assert asked_in(engine) == asked_in(ours) != TEMPLATE_HASH
    greedy = Sampling(temperature=0.0, max_completion_length=24)
    assert [g[0].text for g in engine.generate(asked, greedy, seed=1)] == [
        g[0].text for g in ours.generate(asked, greedy, seed=1)
    ]
    drawn = Sampling(temperature=1.0, max_completion_length=24)
    ends = set(ours.ends)
    assert len(ends) == 3
    groups = engine.generate(asked, drawn, n=16, seed=1)
    stopped = [r for group in groups for r in group if r.finish_reason == "stop"]
    assert {reply.token_ids[-1] for reply in stopped} == ends
    for reply in stopped:
        assert not ends & set(reply.token_ids[:-1])
        assert reply.text == decode_reply(ours.tokenizer, reply.token_ids, ours.ends)


IN_TURN = """
import sys
from caravan.data.records import Message
from caravan.inference import load_engine, unload
from caravan.recipe import Sampling, VLLMEngineConfig
if __name__ == "__main__":
    import psutil
    prompt = [(Message(role="user", content="hi"),)]
    greedy = Sampling(temperature=0.0, max_completion_length=4)
    replies = []
    for special_tokens in (False, True):
        config = VLLMEngineConfig(model_name_or_path=sys.argv[1], max_model_len=128)
        engine = load_engine(config, special_tokens=special_tokens)
        replies += engine.generate(prompt, greedy, seed=1)
        unload(engine)
        left = [p.name() for p in psutil.Process().children(recursive=True)]
        assert not [name for name in left if name.startswith("VLLM")], left
    assert replies[0] == replies[1]
    print("both")
"""


def test_an_unloaded_engine_ends_its_processes_and_leaves_room_for_another(directory, tmp_path):
    script = tmp_path / "in_turn.py"
    script.write_text(IN_TURN)
    done = subprocess.run(
        [sys.executable, str(script), str(directory)],
        env=os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1"}, timeout=500, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert "both" in done.stdout, done.stderr[-3000:]


ENDS = """
import sys, tempfile
tempfile.TemporaryDirectory()  # finalizers then run after multiprocessing's wait for children
from caravan.inference import load_engine
from caravan.recipe import VLLMEngineConfig
if __name__ == "__main__":
    engine = load_engine(VLLMEngineConfig(model_name_or_path=sys.argv[1], max_model_len=128))
    print("loaded")
"""


def test_a_process_that_still_has_its_engine_ends(directory, tmp_path):
    script = tmp_path / "ends.py"
    script.write_text(ENDS)
    done = subprocess.run(
        [sys.executable, str(script), str(directory)],
        env=os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1"}, timeout=500, capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    assert "loaded" in done.stdout


def test_a_directory_without_a_model_is_an_error(tmp_path):
    with pytest.raises(EngineError, match="vLLM cannot load"):
        load_engine(VLLMEngineConfig(model_name_or_path=str(tmp_path)))

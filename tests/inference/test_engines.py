"""The engines that run in this process, and the respond stage on top of them."""

import importlib.util
import shutil
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file

from caravan.data.io import read_rows, write_rows
from caravan.data.records import Completion, Conversation, Message
from caravan.data.template import TEMPLATE_HASH, encode_prompt
from caravan.errors import MissingExtraError, StageError
from caravan.inference import EngineError, asked_in, load_engine, unload
from caravan.inference.program_engine import ProgramEngine
from caravan.inference.transformers_engine import TransformersEngine
from caravan.recipe import (
    PoolMember,
    ProgramEngineConfig,
    Resources,
    Sampling,
    TransformersEngineConfig,
    VLLMEngineConfig,
)
from caravan.stages import respond
from caravan.stages.configs import RespondStageConfig
from caravan.training.models import load_tokenizer, save_model
from caravan_pipelines.graph import find_node
from foreign import write_foreign
from parts import POOL_OF_BASE, part
from tiny import conversations

PROMPTS = [
    (Message(role="user", content=text),) for text in ("what is 3 + 4?", "hi", "say it again")
]
SAMPLING = Sampling(temperature=1.0, max_completion_length=12)
HAS_VLLM = importlib.util.find_spec("vllm") is not None


@pytest.fixture
def directory(model, tokenizer, tmp_path):
    save_model(model, tokenizer, tmp_path / "model")
    return tmp_path / "model"


def test_an_unloaded_engine_keeps_no_model(directory):
    engine = load_engine(directory)
    weights = weakref.ref(next(engine.model.parameters()))
    unload(engine)
    assert weights() is None
    unload(ProgramEngine(lambda messages, rng: ""))  # holds none


def test_special_tokens_are_read_from_a_prompt_only_where_that_is_asked_for(directory):
    """As tokens, they make a prompt of other tokens, and with them another reply."""
    spelled = [(Message(role="user", content="hi <pad><pad><pad><pad>"),)]
    as_text, as_tokens = (
        load_engine(
            TransformersEngineConfig(model_name_or_path=str(directory)), special_tokens=special
        )
        for special in (False, True)
    )
    assert as_text.generate(PROMPTS, SAMPLING, seed=1) == as_tokens.generate(
        PROMPTS, SAMPLING, seed=1
    )
    assert as_text.generate(spelled, SAMPLING, seed=1) != as_tokens.generate(
        spelled, SAMPLING, seed=1
    )


def test_a_model_directory_answers(directory, model, tokenizer):
    engine = load_engine(directory)
    groups = engine.generate(PROMPTS, SAMPLING, n=3, seed=1)
    assert [len(group) for group in groups] == [3, 3, 3]
    assert groups == engine.generate(PROMPTS, SAMPLING, n=3, seed=1)
    assert groups == TransformersEngine(model, tokenizer).generate(PROMPTS, SAMPLING, n=3, seed=1)
    assert groups != engine.generate(PROMPTS, SAMPLING, n=3, seed=2)
    for prompt, group in zip(PROMPTS, groups, strict=True):
        ids = encode_prompt(tokenizer, prompt)
        for reply in group:
            assert reply.text == tokenizer.decode(reply.token_ids, skip_special_tokens=True)
            logits = model(torch.tensor([[*ids, *reply.token_ids]])).logits[0, len(ids) - 1 : -1]
            wanted = logits.log_softmax(-1).gather(-1, torch.tensor(reply.token_ids)[:, None])
            assert reply.logprobs == pytest.approx(wanted[:, 0].tolist(), abs=2e-5)


def test_a_model_that_lacks_a_tensor_is_refused(directory, tmp_path):
    damaged = shutil.copytree(directory, tmp_path / "damaged")
    weights = load_file(damaged / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, damaged / "model.safetensors", {"format": "pt"})
    with pytest.raises(EngineError, match=r"lacks weights: model\.norm\.weight; copy it again"):
        TransformersEngine.from_pretrained(damaged)


def test_the_end_token_is_not_in_the_text(model, tokenizer):
    with torch.no_grad():
        model.lm_head.weight[1] = model.lm_head.weight.mean(0) * 0 + 1.0
    engine = TransformersEngine(model, tokenizer)
    replies = [r for g in engine.generate(PROMPTS, SAMPLING, n=20, seed=0) for r in g]
    stopped = [r for r in replies if r.finish_reason == "stop"]
    assert stopped
    for reply in stopped:
        assert reply.token_ids[-1] == tokenizer.eos_token_id
        assert "<|endoftext|>" not in reply.text
        assert reply.text == tokenizer.decode(reply.token_ids[:-1], skip_special_tokens=True)


def test_a_relative_path_is_meant_from_the_recipe(directory):
    config = TransformersEngineConfig(model_name_or_path="model")
    engine = load_engine(config, recipe_dir=directory.parent)
    assert engine.generate(PROMPTS, SAMPLING, seed=0)


def test_a_directory_without_a_model_is_an_error(tmp_path):
    with pytest.raises(EngineError, match="cannot load the model"):
        load_engine(tmp_path)


def test_pickled_weights_are_refused(directory, model):
    (directory / "model.safetensors").unlink()
    torch.save(model.state_dict(), directory / "pytorch_model.bin")
    with pytest.raises(EngineError, match=r"model\.safetensors"):
        load_engine(directory)


def test_a_program_gets_a_generator_of_its_own_for_every_reply():
    engine = ProgramEngine(lambda messages, rng: f"{messages[-1].content}: {rng.random()}")
    first = engine.generate(PROMPTS, SAMPLING, n=2, seed=1)
    assert first == engine.generate(PROMPTS, SAMPLING, n=2, seed=1)
    assert first[1:] == engine.generate(PROMPTS[1:], SAMPLING, n=2, seed=1)
    texts = {r.text for group in first for r in group}
    assert len(texts) == 6
    assert not texts & {r.text for g in engine.generate(PROMPTS, SAMPLING, seed=2) for r in g}


def test_an_unknown_program_is_an_error_that_lists_the_known_ones():
    with pytest.raises(EngineError, match="no program 'nobody'; there are: "):
        load_engine(ProgramEngineConfig(program="nobody"))


@pytest.mark.skipif(HAS_VLLM, reason="vLLM is installed")
def test_without_vllm_the_extra_is_named(directory):
    with pytest.raises(MissingExtraError, match=r"caravan\[vllm\]"):
        load_engine(VLLMEngineConfig(model_name_or_path=str(directory)))


# --- respond ------------------------------------------------------------------------------------


@pytest.fixture
def prompts_dir(tmp_path):
    rows = [
        Conversation(
            id=f"toy/{i}",
            messages=(Message(role="user", content=f"question {i}"),),
            source="toy",
            skill="chat",
            license="Apache-2.0",
        )
        for i in range(10)
    ]
    write_rows(tmp_path / "prompts" / "rows.jsonl", rows)
    return tmp_path / "prompts"


class Context:
    def __init__(self, root):
        self.root, self.seed, self.recipe_dir, self.told = root, 3, root, []
        self.workdir = root / "work"
        self.workdir.mkdir(parents=True, exist_ok=True)

    def output(self, name, kind):
        path = self.root / f"out-{len(list(self.root.glob('out-*')))}" / name
        path.mkdir(parents=True)
        return path

    def progress(self, done, total):
        self.told.append((done, total))


def member_config(**changes):
    member = PoolMember(name="own", artifact="sft", num_generations=2)
    values = {
        "member": member,
        "engine": None,
        "sampling": SAMPLING,
        "resources": Resources(cpus=1),
    }
    return RespondStageConfig.model_validate(values | changes)


def test_respond_answers_every_prompt_and_goes_on_where_it_stopped(
    directory, prompts_dir, tmp_path, monkeypatch
):
    monkeypatch.setattr(respond, "PROMPTS_PER_CHUNK", 4)
    inputs = {"prompts": prompts_dir, "model": directory}
    context = Context(tmp_path / "context")
    result = respond.run(member_config(), inputs, context)
    rows = list(read_rows(context.root / "out-0" / "completions", Completion))
    assert [(r.prompt_id, r.index) for r in rows] == [
        (f"toy/{i}", j) for i in range(10) for j in range(2)
    ]
    assert {r.model for r in rows} == {"own"}
    assert result.metrics["completions"] == 20
    assert context.told[-1] == (10, 10)

    lost = sorted(context.workdir.glob("chunk-*"))[1]
    lost.unlink()
    times = {p: p.stat().st_mtime_ns for p in context.workdir.glob("chunk-*")}
    respond.run(member_config(), inputs, context)
    assert (context.root / "out-1/completions/rows.jsonl").read_bytes() == (
        context.root / "out-0/completions/rows.jsonl"
    ).read_bytes()
    assert all(p.stat().st_mtime_ns == then for p, then in times.items())


def test_vllm_divides_a_model_of_the_run_over_the_gpus_of_its_member_and_has_room_for_all_prompts(
    monkeypatch, directory, tmp_path
):
    class SeenError(Exception):
        pass

    def load(path, **options):
        raise SeenError(*(options[o] for o in ("kind", "tensor_parallel_size", "max_model_len")))

    monkeypatch.setattr(respond, "load_engine", load)
    recipe = part(POOL_OF_BASE)
    longest = max(conversations(20), key=lambda row: len(row.prompt[0].content))
    write_rows(tmp_path / "rows.jsonl", conversations(20))
    inputs = {"prompts": tmp_path, "model": directory}
    needed = len(encode_prompt(load_tokenizer(directory), longest.prompt))
    for gpus, size in ((0, 1), (4, 4)):
        asked = recipe.respond.derive(engine="vllm", resources=Resources(gpus=gpus))
        config = find_node(recipe.derive(respond=asked), "respond-own").config
        with pytest.raises(SeenError) as seen:
            respond.run(config, inputs, Context(tmp_path / "run"))
        limit = config.sampling.max_completion_length
        assert seen.value.args == ("vllm", size, needed + limit)


def test_respond_records_what_the_model_was_asked_in(prompts_dir, tmp_path):
    """Also where all was answered before it was stopped, and no model is loaded any more."""
    foreign = write_foreign(tmp_path / "foreign", "gemma")
    member = PoolMember(name="gemma", engine="x")
    engine = TransformersEngineConfig(model_name_or_path=str(foreign))
    context = Context(tmp_path / "context")
    for attempt in range(2):
        respond.run(member_config(member=member, engine=engine), {"prompts": prompts_dir}, context)
        found = context.root / f"out-{attempt}" / "completions" / "chat_template.sha256"
        assert found.read_text().strip() == asked_in(load_engine(engine)) != TEMPLATE_HASH


def test_respond_names_the_row_that_a_template_refuses(prompts_dir, tmp_path):
    rows = list(read_rows(prompts_dir, Conversation))
    (message,) = rows[3].messages
    rows[3] = rows[3].model_copy(update={"messages": (message, message)})
    write_rows(prompts_dir / "rows.jsonl", rows)
    engine = TransformersEngineConfig(
        model_name_or_path=str(write_foreign(tmp_path / "foreign", "gemma"))
    )
    config = member_config(member=PoolMember(name="gemma", engine="x"), engine=engine)
    with pytest.raises(
        EngineError, match=r"toy/3: the chat template of .*foreign refuses it: Conv"
    ):
        respond.run(config, {"prompts": prompts_dir}, Context(tmp_path / "context"))


def with_a_long_one(prompts_dir, *places):
    """The prompts, those at `places` too long for the model."""
    rows = list(read_rows(prompts_dir, Conversation))
    for place in places:
        (message,) = rows[place].messages
        long = message.model_copy(update={"content": message.content + " and on" * 200})
        rows[place] = rows[place].model_copy(update={"messages": (long,)})
    write_rows(prompts_dir / "rows.jsonl", rows)


def test_respond_leaves_out_a_prompt_without_room_for_a_reply(
    directory, prompts_dir, tmp_path, caplog
):
    with_a_long_one(prompts_dir, 4)
    inputs = {"prompts": prompts_dir, "model": directory}
    context = Context(tmp_path / "context")
    result = respond.run(member_config(), inputs, context)
    assert (result.metrics["prompts_too_long"], result.metrics["completions"]) == (1, 18)
    assert "1 of 10 prompts leave 'own' no room for a reply and are left out: toy/4" in caplog.text
    rows = read_rows(context.root / "out-0" / "completions", Completion)
    assert {r.prompt_id for r in rows if r.finish_reason == "too_long"} == {"toy/4"}

    with_a_long_one(prompts_dir, *range(10))
    context = Context(tmp_path / "all")
    with pytest.raises(StageError, match=r"10 of 10 prompts .* toy/4 and 5 more\. Take a"):
        respond.run(member_config(), inputs, context)


def test_respond_lets_a_drawn_member_answer_its_share(prompts_dir, directory, tmp_path):
    config = member_config(
        member=PoolMember(name="a", engine="x"),
        engine=TransformersEngineConfig(model_name_or_path=str(directory)),
        drawn_from=("a", "b"),
        drawn=1,
    )
    context = Context(tmp_path / "context")
    respond.run(config, {"prompts": prompts_dir}, context)
    rows = list(read_rows(context.root / "out-0" / "completions", Completion))
    assert [r.prompt_id for r in rows] == [
        f"toy/{i}" for i in range(10) if config.answers(f"toy/{i}")
    ]
    assert 0 < len(rows) < 10

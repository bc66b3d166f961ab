import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from caravan.data.records import Message
from caravan.data.template import TEMPLATE, render
from caravan.errors import DataError
from caravan.recipe import ImportedBase, SFTConfig
from caravan.training import models
from caravan.training.adapters import load_base
from caravan.training.importing import find_model, import_model
from caravan.training.models import (
    load_policy,
    load_reward_model,
    new_reward_model,
    save_model,
)
from caravan.training.parallel import ranks
from caravan.training.pretrain import new_llama
from caravan.training.rewards import end_token_rewards
from tiny import SHAPE

FILES = [
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
]
LAYER = "model.layers.0.self_attn.q_proj.weight"


def contents(directory):
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def test_a_saved_model_is_a_plain_hugging_face_directory(policy, model_dir, ids):
    assert sorted(contents(model_dir)) == FILES
    loaded = AutoModelForCausalLM.from_pretrained(model_dir)
    assert torch.equal(loaded(ids).logits, policy.model.eval()(ids).logits)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    messages = [Message(role="user", content="12 camels"), Message(role="assistant", content="No")]
    text = tokenizer.apply_chat_template([m.model_dump() for m in messages], tokenize=False)
    assert text == render(messages)
    assert (model_dir / "chat_template.jinja").read_text() == TEMPLATE
    generation = json.loads((model_dir / "generation_config.json").read_text())
    assert generation["eos_token_id"] == tokenizer.eos_token_id
    assert generation["pad_token_id"] == tokenizer.pad_token_id


def test_loading_and_saving_gives_the_same_bytes(model_dir, tmp_path):
    loaded = load_policy(model_dir)
    save_model(loaded.model, loaded.tokenizer, tmp_path / "again")
    assert contents(tmp_path / "again") == contents(model_dir)
    assert str(tmp_path).encode() not in b"".join(contents(model_dir).values())


def test_pickled_weights_are_refused(model_dir):
    (model_dir / "model.safetensors").rename(model_dir / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"pytorch_model.bin are pickled"):
        load_policy(model_dir)


def test_a_directory_without_a_model_is_refused(tmp_path, model_dir):
    with pytest.raises(DataError, match=r"no config.json"):
        load_policy(tmp_path / "nowhere")
    (model_dir / "model.safetensors").unlink()
    with pytest.raises(DataError, match="no weights"):
        load_policy(model_dir)


def test_cut_weights_are_refused(model_dir):
    weights = (model_dir / "model.safetensors").read_bytes()
    (model_dir / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(DataError, match="cannot be loaded"):
        load_policy(model_dir)


def change_weights(directory, change):
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(LAYER), f"{LAYER} are missing; copy the model again"),
        (lambda tensors: tensors.update({LAYER: torch.zeros(3, 3)}), f"{LAYER} have another shape"),
        (
            lambda tensors: tensors.update({"score.weight": torch.zeros(1, 32)}),
            "score.weight are of a head that LlamaForCausalLM does not have",
        ),
    ],
)
@pytest.mark.parametrize("imported", [False, True])
def test_weights_that_are_not_the_models_are_refused(
    model_dir, tmp_path, change, message, imported
):
    change_weights(model_dir, change)
    load = load_policy
    if imported:  # and given a pad token, for which the weights are read
        path = model_dir / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": None}))
        load = partial(import_model, target=tmp_path / "imported")
    with pytest.raises(DataError, match=re.escape(message)) as error:
        load(model_dir)
    assert str(model_dir) in str(error.value)


def test_a_policy_is_no_reward_model(model_dir):
    with pytest.raises(DataError, match=r"score\.weight are missing"):
        load_reward_model(model_dir)


@pytest.mark.parametrize(
    ("token", "value", "message"),
    [
        ("pad_token", None, "no pad token"),
        ("eos_token", None, "no end token"),
        ("pad_token", "<|endoftext|>", "are both '<|endoftext|>'"),
    ],
)
def test_a_tokenizer_that_cannot_be_trained_with_is_refused(model_dir, token, value, message):
    path = model_dir / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config[token] = value
    path.write_text(json.dumps(config))
    with pytest.raises(DataError, match=message.replace("|", r"\|")):
        load_policy(model_dir)


def test_a_reward_model_has_the_policys_body_and_a_new_head(policy, model_dir, tmp_path):
    torch.manual_seed(0)
    reward_model, tokenizer = new_reward_model(model_dir)
    body = policy.model.base_model.state_dict()
    assert all(torch.equal(v, body[k]) for k, v in reward_model.base_model.state_dict().items())
    assert reward_model.score.weight.std().item() == pytest.approx(33**-0.5, rel=0.3)

    save_model(reward_model, tokenizer, tmp_path / "reward")
    loaded, _ = load_reward_model(tmp_path / "reward")
    assert torch.equal(loaded.score.weight, reward_model.score.weight)
    other = AutoModelForSequenceClassification.from_pretrained(model_dir, num_labels=3)
    save_model(other, tokenizer, tmp_path / "other")
    with pytest.raises(DataError, match="one label"):
        load_reward_model(tmp_path / "other")


def test_the_reward_is_read_at_the_last_token_as_transformers_does(model_dir, ids):
    torch.manual_seed(0)
    model, tokenizer = new_reward_model(model_dir)
    lengths = torch.tensor([16, 5, 9])
    padded = ids.masked_fill(torch.arange(16) >= lengths[:, None], tokenizer.pad_token_id)
    mask = (torch.arange(16) < lengths[:, None]).long()
    expected = model(input_ids=padded, attention_mask=mask).logits.squeeze(1)
    torch.testing.assert_close(end_token_rewards(model, padded, lengths), expected)


def test_a_model_with_a_pad_token_is_imported_byte_for_byte(model_dir, tmp_path):
    (model_dir / "optimizer.pt").write_bytes(b"not wanted")
    assert import_model(model_dir, tmp_path / "imported") == 0
    (model_dir / "optimizer.pt").unlink()
    assert contents(tmp_path / "imported") == contents(model_dir)


def test_a_model_without_a_pad_token_is_given_one(policy, model_dir, tmp_path, ids):
    rows = len(policy.tokenizer)
    policy.model.resize_token_embeddings(rows)
    save_model(policy.model, policy.tokenizer, model_dir)
    path = model_dir / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": None}))
    raw = json.loads((model_dir / "tokenizer.json").read_text())
    renamed = json.dumps(raw).replace("<pad>", "<unused>")
    (model_dir / "tokenizer.json").write_text(renamed)

    assert import_model(model_dir, tmp_path / "imported") == 1

    model, tokenizer = load_policy(tmp_path / "imported")
    assert tokenizer.pad_token == "<pad>"
    assert tokenizer.pad_token_id == rows
    assert model.config.vocab_size == -(-(rows + 1) // 8) * 8
    ids = ids % rows
    logits = model.eval()(ids).logits
    torch.testing.assert_close(logits[..., :rows], policy.model.eval()(ids).logits)


def test_an_unknown_base_model_is_a_clear_error(tmp_path):
    with pytest.raises(DataError, match="no such directory"):
        find_model(ImportedBase(model_name_or_path="./nowhere"), tmp_path)


def test_a_model_may_lie_in_the_home_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "models" / "base").mkdir(parents=True)
    found = find_model(ImportedBase(model_name_or_path="~/models/base"), Path("elsewhere"))
    assert found == tmp_path / "models" / "base"
    with pytest.raises(DataError, match=f"{tmp_path}/nowhere: no such directory"):
        find_model(ImportedBase(model_name_or_path="~/nowhere"), Path("elsewhere"))


TRAIN = """
import hashlib
from caravan.training.bpe import train_tokenizer
texts = [f"Town {i % 97} of Orsa sells {i * 7 % 31} kites and {i} lamps." for i in range(3000)]
tokenizer = train_tokenizer(texts, vocab_size=600, model_max_length=64)
print(hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest())
"""


def test_the_tokenizer_is_the_same_in_every_process():
    digests = {
        subprocess.run(
            [sys.executable, "-c", TRAIN], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    }
    assert len(digests) == 1


def test_the_tokenizer_splits_digits_and_gives_every_text_back(tokenizer):
    text = "Zoë pays 1234 ₡ — <|user|>\n\n  twice"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert [tokenizer.decode(i) for i in tokenizer("1234")["input_ids"]] == ["1", "2", "3", "4"]


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_ranks_of_zero_3_but_the_first_read_no_weights_and_take_no_memory_for_them(
    tokenizer, tmp_path, monkeypatch
):
    shape = SHAPE.derive(hidden_size=512, intermediate_size=4096, num_hidden_layers=8)
    whole = new_llama(shape, tokenizer)  # kept, or its memory would be taken again
    save_model(whole, tokenizer, tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nobody reads this")
    monkeypatch.setattr(ranks, "_current", ranks.Ranks(rank=1, count=2))
    before = resident_bytes()
    model, _ = load_base(tmp_path, SFTConfig(zero_stage=3), torch.device("cpu"))
    taken = resident_bytes() - before
    reward_model, _ = new_reward_model(tmp_path, weights=ranks.reads_weights(zero_stage=3))

    assert taken < 0.2 * 4 * whole.num_parameters()
    shapes = [(name, value.shape) for name, value in model.named_parameters()]
    assert shapes == [(name, value.shape) for name, value in whole.named_parameters()]
    for name, value in whole.named_buffers():  # DeepSpeed hands out weights alone
        assert torch.equal(model.get_buffer(name), value)
    assert reward_model.score.weight.shape == (1, 512)
    with pytest.raises(DataError, match="cannot be loaded"):
        load_base(tmp_path, SFTConfig(zero_stage=2), torch.device("cpu"))


def test_under_zero_3_kernels_are_those_of_the_gpu_though_the_model_is_on_the_host(
    policy, monkeypatch
):
    devices = []
    monkeypatch.setattr(models, "use_fused_kernels", lambda _, device: devices.append(device))
    monkeypatch.setattr(ranks, "_current", ranks.Ranks(0, 2))
    gpu = torch.device("cuda")
    placed = models.place(policy.model, gpu, gradient_checkpointing=False, zero_stage=3)
    assert devices == [gpu]
    assert placed.device.type == "cpu"

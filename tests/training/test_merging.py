"""Merged models, against the sum of whole state dicts as transformers loads them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from caravan.errors import DataError
from caravan.training.merging import Ingredient, convert, merge_models, normalised
from caravan.training.models import save_model


@pytest.fixture
def pair(policy, tokenizer, tmp_path) -> tuple[Path, Path]:
    """Two models of one shape with other weights."""
    paths = (tmp_path / "a", tmp_path / "b")
    for seed, path in enumerate(paths):
        torch.manual_seed(seed)
        for parameter in policy.model.parameters():
            torch.nn.init.normal_(parameter)
        save_model(policy.model, tokenizer, path)
    return paths


def weights_of(directory: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).state_dict()


def test_a_merge_is_the_weighted_sum_and_loads_with_transformers(pair, tmp_path):
    merge_models([Ingredient(pair[0], 0.25), Ingredient(pair[1], 0.75)], tmp_path / "soup")
    a, b, soup = weights_of(pair[0]), weights_of(pair[1]), weights_of(tmp_path / "soup")
    assert soup.keys() == a.keys()
    for name, merged in soup.items():
        torch.testing.assert_close(merged, 0.25 * a[name] + 0.75 * b[name])


def test_a_merge_has_not_the_card_of_its_first_model(pair, tmp_path):
    (pair[0] / "README.md").write_text("# The first")
    merge_models([Ingredient(path, 0.5) for path in pair], tmp_path / "merged")
    assert not (tmp_path / "merged" / "README.md").exists()


def test_the_same_merge_gives_the_same_bytes(pair, tmp_path):
    for name in ("one", "two"):
        merge_models([Ingredient(path, 0.5) for path in pair], tmp_path / name)
    one, two = (sorted((tmp_path / name).iterdir()) for name in ("one", "two"))
    assert [p.name for p in one] == [p.name for p in two]
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in two]


def test_weights_are_normalised():
    assert normalised([1, 3]) == [0.25, 0.75]
    with pytest.raises(DataError, match="sum to"):
        normalised([1, -1])


def test_models_in_several_files_are_merged_as_those_in_one(pair, policy, tmp_path):
    whole = AutoModelForCausalLM.from_pretrained(pair[1])
    sharded = tmp_path / "sharded"
    shutil.copytree(pair[1], sharded)
    (sharded / "model.safetensors").unlink()
    whole.save_pretrained(sharded, max_shard_size="20KB")
    for name in ("config.json", "generation_config.json"):
        shutil.copyfile(pair[1] / name, sharded / name)
    assert len(list(sharded.glob("*.safetensors"))) > 1
    merge_models([Ingredient(pair[0], 0.5), Ingredient(sharded, 0.5)], tmp_path / "soup")
    merge_models([Ingredient(pair[0], 0.5), Ingredient(pair[1], 0.5)], tmp_path / "whole")
    soup, expected = (load_file(tmp_path / d / "model.safetensors") for d in ("soup", "whole"))
    assert all(torch.equal(soup[name], expected[name]) for name in expected)


def test_other_architectures_tokenizers_and_templates_are_refused(pair, tmp_path):
    def changed(name: str, old: str, new: str) -> Path:
        copy = tmp_path / f"changed-{name}"
        shutil.copytree(pair[1], copy)
        text = (copy / name).read_text()
        assert old in text
        (copy / name).write_text(text.replace(old, new))
        return copy

    def refused(other: Path) -> str:
        with pytest.raises(DataError) as error:
            merge_models([Ingredient(pair[0], 0.5), Ingredient(other, 0.5)], tmp_path / "no")
        return str(error.value)

    theta = json.loads((pair[1] / "config.json").read_text())["rope_parameters"]["rope_theta"]
    said = refused(changed("config.json", f'"rope_theta": {theta}', '"rope_theta": 7.0'))
    assert "another architecture" in said
    assert "rope_parameters" in said
    assert "another tokenizer" in refused(changed("tokenizer.json", "<pad>", "<xyz>"))
    template = "chat_template.jinja"
    assert "another chat template" in refused(changed(template, "<|assistant|>", "<|bot|>"))


def test_other_tensors_and_shapes_are_refused(pair, tokenizer, tmp_path):
    from safetensors.torch import save_file

    def refused(tensors: dict[str, torch.Tensor]) -> str:
        save_file(tensors, pair[1] / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(DataError) as error:
            merge_models([Ingredient(p, 0.5) for p in pair], tmp_path / "no")
        return str(error.value)

    tensors = load_file(pair[1] / "model.safetensors")
    name = "model.norm.weight"
    assert f"{name} has the shape [5]" in refused(tensors | {name: torch.zeros(5)})
    del tensors[name]
    assert f"{name} is in one of them only" in refused(tensors)


def test_a_model_is_converted_to_half_its_size(pair, tmp_path):
    convert(pair[0], tmp_path / "half", torch.bfloat16)
    half = AutoModelForCausalLM.from_pretrained(tmp_path / "half", dtype="auto")
    assert half.dtype is torch.bfloat16
    whole = weights_of(pair[0])
    for name, value in half.state_dict().items():
        assert torch.equal(value, whole[name].bfloat16())


MERGES = """
import json, re, resource, sys, torch
from pathlib import Path
from safetensors.torch import save_file
from caravan.training.merging import Ingredient, merge_models
home = Path(sys.argv[1])
for name in "ab":
    (home / name).mkdir()
    (home / name / "config.json").write_text("{}")
    tensors = {f"layer.{i}": torch.ones(10_000_000) for i in range(6)}
    save_file(tensors, home / name / "model.safetensors")
    del tensors
held = int(re.search(r"VmData:\\s+(\\d+)", open("/proc/self/status").read())[1]) * 1024
limit = held + 2 * 240_000_000 + 170_000_000
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
merge_models([Ingredient(home / "a", 0.5), Ingredient(home / "b", 0.5)], home / "soup")
"""


def test_a_merge_holds_a_tensor_at_a_time(tmp_path):
    """Two models of 240 MB, which are mapped, are merged with room for 170 MB beside them."""
    subprocess.run([sys.executable, "-c", MERGES, str(tmp_path)], check=True)
    with safe_open(tmp_path / "soup" / "model.safetensors", framework="pt") as soup:
        assert len(soup.keys()) == 6

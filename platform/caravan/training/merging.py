"""Model soups: linear merges of models of one architecture (Wortsman et al. 2022,
arXiv:2203.05482), a tensor at a time.

Weights of any size are merged in the memory of their largest tensor, twice: safetensors files are
read tensor by tensor, and the merged one is written as it comes.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from caravan.errors import DataError
from caravan.training.models import check_model_directory

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
CARD = "README.md"
VOLATILE = frozenset(
    {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "architectures"}
)
"""Fields of config.json that say nothing of the function that the weights define."""
DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""Names of the safetensors format."""
SHOWN = 3


class Ingredient(NamedTuple):
    directory: Path
    weight: float


def normalised(weights: Sequence[float]) -> list[float]:
    """The weights, divided by their sum.

    Raises:
        DataError: they sum to nothing, or one is not a number.
    """
    total = math.fsum(weights)
    if not math.isfinite(total) or total <= 0:
        raise DataError(f"weights {list(weights)} sum to {total}: give positive ones")
    return [weight / total for weight in weights]


def merge_models(ingredients: Sequence[Ingredient], target: Path) -> None:
    """Write the weighted sum of models into the directory `target`, which is made.

    Sums are taken in float32, in the order of `ingredients`, and kept in the precision of the
    first one, whose config, tokenizer and template the merged model has.

    Raises:
        DataError: a model cannot be read, or differs from the first in architecture, tensors,
            tokenizer or chat template; says in what.
    """
    for directory, _ in ingredients:
        check_model_directory(directory)
    first = ingredients[0].directory
    for other, _ in ingredients[1:]:
        _check_alike(first, other)
    copy_besides_weights(first, target)
    with ExitStack() as stack:
        models = [stack.enter_context(OpenWeights(i.directory)) for i in ingredients]
        for other_model in models[1:]:
            _check_tensors(models[0], other_model)
        weights = [i.weight for i in ingredients]
        layout = {name: models[0].entry(name) for name in models[0].names}
        with (target / WEIGHTS).open("wb") as file:
            write_tensors(file, layout, (_sum(name, models, weights) for name in models[0].names))


def convert(source: Path, target: Path, dtype: torch.dtype) -> None:
    """Write the model in `source` into `target` with its floating-point tensors as `dtype`."""
    copy_besides_weights(source, target)
    config = json.loads((source / "config.json").read_text())
    config["dtype"] = str(dtype).removeprefix("torch.")
    config.pop("torch_dtype", None)
    (target / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    with OpenWeights(source) as model:
        layout = {}
        for name in model.names:
            found, shape = model.entry(name)
            layout[name] = (dtype if found.is_floating_point else found, shape)
        tensors = (model.tensor(name).to(layout[name][0]) for name in model.names)
        with (target / WEIGHTS).open("wb") as file:
            write_tensors(file, layout, tensors)


def copy_besides_weights(source: Path, target: Path) -> None:
    """Configuration and tokenizer; not the card, which tells of `source`."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix != ".safetensors" and path.name not in (INDEX, CARD):
            shutil.copyfile(path, target / path.name)


# --- reading and writing safetensors ------------------------------------------------------------

Entry = tuple[torch.dtype, tuple[int, ...]]


@dataclass
class OpenWeights:
    """The tensors of a model directory, of one file or of several, read as they are asked for."""

    directory: Path

    def __enter__(self) -> OpenWeights:
        self._stack = ExitStack()
        self._files: dict[str, Any] = {}
        for path in sorted(self.directory.glob("*.safetensors")):
            file = self._stack.enter_context(safe_open(path, framework="pt"))
            self._files |= dict.fromkeys(file.keys(), file)
        self.names = sorted(self._files)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def tensor(self, name: str) -> Tensor:
        return torch.as_tensor(self._files[name].get_tensor(name))

    def entry(self, name: str) -> Entry:
        """Precision and shape, without reading the tensor."""
        part = self._files[name].get_slice(name)
        dtype = next(d for d, known in DTYPES.items() if known == part.get_dtype())
        return dtype, tuple(part.get_shape())


def write_tensors(file: BinaryIO, layout: Mapping[str, Entry], tensors: Iterator[Tensor]) -> None:
    """Write one safetensors file, a tensor at a time.

    The format (github.com/huggingface/safetensors): the length of the header in eight bytes, the
    header as JSON, then the tensors' bytes, little-endian and without gaps.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape) in layout.items():
        size = math.prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": DTYPES[dtype], "shape": list(shape), "data_offsets": [offset, offset + size],
        }  # fmt: skip
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of eight
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    for tensor in tensors:
        flat = tensor.contiguous().flatten().view(torch.uint8)
        file.write(flat.numpy().data)


def _sum(name: str, models: Sequence[OpenWeights], weights: Sequence[float]) -> Tensor:
    first = models[0].tensor(name)
    if not first.is_floating_point():
        for model in models[1:]:
            if not torch.equal(first, model.tensor(name)):
                raise DataError(
                    f"{model.directory}: {name} holds whole numbers that differ from those of "
                    f"{models[0].directory}; they cannot be averaged"
                )
        return first
    total = first.float() * weights[0]
    for model, weight in zip(models[1:], weights[1:], strict=True):
        total.add_(model.tensor(name).float(), alpha=weight)
    return total.to(first.dtype)


# --- what must be alike -------------------------------------------------------------------------


def _check_alike(first: Path, other: Path) -> None:
    for name, words in (
        ("config.json", "architecture"),
        ("tokenizer.json", "tokenizer"),
        ("chat_template.jinja", "chat template"),
    ):
        mine, theirs = _content(first / name), _content(other / name)
        if mine != theirs:
            fields = ""
            if isinstance(mine, dict) and isinstance(theirs, dict):
                keys = sorted(k for k in {*mine, *theirs} if mine.get(k) != theirs.get(k))
                fields = f" (they differ in {', '.join(keys[:SHOWN])})"
            raise DataError(
                f"{other} has another {words} than {first}{fields}; "
                "only models that were trained from one another can be merged"
            )


def _content(path: Path) -> object:
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".json":
        return text
    content = json.loads(text)
    return {k: v for k, v in content.items() if k not in VOLATILE}


def _check_tensors(first: OpenWeights, other: OpenWeights) -> None:
    if first.names != other.names:
        odd = sorted(set(first.names) ^ set(other.names))
        raise DataError(
            f"{other.directory} and {first.directory} do not hold the same tensors: "
            f"{', '.join(odd[:SHOWN])} {'is' if len(odd) == 1 else 'are'} in one of them only"
        )
    for name in first.names:
        mine, theirs = first.entry(name)[1], other.entry(name)[1]
        if mine != theirs:
            raise DataError(
                f"{other.directory}: {name} has the shape {list(theirs)}, in {first.directory} "
                f"it is {list(mine)}"
            )

"""The shape of a decoder-only transformer (Llama and its kin), and what follows from it.

Shapes: d hidden size, L layers, V vocabulary.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from caravan.errors import DataError
from caravan.recipe import PretrainedBase
from caravan.recipe.paths import model_directory


@dataclass(frozen=True)
class ModelShape:
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    vocab_size: int
    tied: bool = False
    """One matrix is both embedding and output head."""
    head_dim: int = 0
    """0 takes hidden_size / num_heads."""

    @property
    def attention_width(self) -> int:
        return self.num_heads * (self.head_dim or self.hidden_size // self.num_heads)

    @property
    def kv_width(self) -> int:
        return self.num_kv_heads * (self.head_dim or self.hidden_size // self.num_heads)

    @property
    def layer_parameters(self) -> int:
        d = self.hidden_size
        attention = 2 * d * self.attention_width + 2 * d * self.kv_width
        return attention + 3 * d * self.intermediate_size + 2 * d

    @property
    def head_parameters(self) -> int:
        return self.vocab_size * self.hidden_size

    @property
    def parameters(self) -> int:
        embeddings = self.head_parameters * (1 if self.tied else 2)
        return self.num_layers * self.layer_parameters + embeddings + self.hidden_size

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of one position in bf16."""
        return 2 * 2 * self.num_layers * self.kv_width

    def forward_flops(self, tokens: float, *, length: float, head_tokens: float) -> float:
        """Of one forward pass over `tokens` tokens in rows of `length`, causal attention.

        Args:
            head_tokens: positions that go through the output head.
        """
        matrices = 2 * self.num_layers * self.layer_parameters * tokens
        attention = 2 * self.num_layers * self.attention_width * length * tokens
        return matrices + attention + 2 * self.head_parameters * head_tokens


def shape_of_config(config: dict[str, Any], where: str) -> ModelShape:
    """The shape in a Hugging Face `config.json`.

    Raises:
        DataError: a number that the shape needs is not in it.
    """
    config = config.get("text_config", config)
    try:
        heads = config["num_attention_heads"]
        return ModelShape(
            hidden_size=config["hidden_size"],
            intermediate_size=config.get("intermediate_size") or 4 * config["hidden_size"],
            num_layers=config["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=config.get("num_key_value_heads") or heads,
            vocab_size=config["vocab_size"],
            tied=bool(config.get("tie_word_embeddings", False)),
            head_dim=config.get("head_dim") or 0,
        )
    except KeyError as error:
        raise DataError(f"{where}: no {error.args[0]!r}, so its size cannot be known") from error


def pretrained_shape(config: PretrainedBase) -> ModelShape:
    heads = config.num_attention_heads
    return ModelShape(
        config.hidden_size, config.intermediate_size, config.num_hidden_layers, heads, heads,
        config.vocab_size, tied=True,
    )  # fmt: skip


LLAMA = {
    # config.json of meta-llama/Llama-3.2-1B, -3.2-3B, -3.1-8B, -3.1-70B and -3.1-405B.
    1: ModelShape(2048, 8192, 16, 32, 8, 128_256, tied=True),
    3: ModelShape(3072, 8192, 28, 24, 8, 128_256, tied=True),
    8: ModelShape(4096, 14336, 32, 32, 8, 128_256),
    70: ModelShape(8192, 28672, 80, 64, 8, 128_256),
    405: ModelShape(16384, 53248, 126, 128, 8, 128_256),
}
"""Known shapes, by billions of parameters."""

BILLIONS = re.compile(r"(?<![0-9._])(\d+(?:[._]\d+)?)b(?![a-z0-9])", re.IGNORECASE)
NAMED = {"mistral-nemo": 12.2, "wildguard": 7.2}
"""Billions of parameters of models whose names do not say it."""


def shape_of_model(name: str, directory: Path) -> tuple[ModelShape, str]:
    """The shape of the model `name`, and how it is known.

    A directory (relative ones lie below `directory`) tells by its config.json, as does a model in
    the hub's local cache. Of any other the size is in its name: a Llama 3 of that size has the
    known shape, and others are taken as a Llama with layers enough for as many parameters.

    Raises:
        DataError: nothing tells the size.
    """
    path = model_directory(name, directory)
    config = path / "config.json" if path.is_dir() else _cached_config(name)
    if config is not None and config.is_file():
        return shape_of_config(json.loads(config.read_text()), str(config)), "its config.json"
    found = BILLIONS.search(name)
    if found is not None:
        billions = float(found[1].replace("_", "."))
    elif any(known in name.lower() for known in NAMED):
        billions = next(size for known, size in NAMED.items() if known in name.lower())
    else:
        raise DataError(
            f"{name}: no such directory under {directory}, not in the hub's cache, and no size in "
            "its name; download it first, or name it with its size (such as my-model-8b)"
        )
    if "llama-3" in name.lower() and billions in LLAMA:
        return LLAMA[int(billions)], "the known shape of Llama 3"
    return scaled(billions * 1e9), "the size in its name"


def scaled(parameters: float) -> ModelShape:
    """A Llama of about so many parameters: the nearest known one with more or fewer layers."""
    near = min(LLAMA.values(), key=lambda s: abs(s.parameters / parameters - 1))
    other = near.parameters - near.num_layers * near.layer_parameters
    layers = max(1, round((parameters - other) / near.layer_parameters))
    return replace(near, num_layers=layers)


def _cached_config(name: str) -> Path | None:
    """config.json of a hub's model that was downloaded before; nothing is fetched."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    if name.count("/") != 1 or name.startswith((".", "/")):
        return None
    found = try_to_load_from_cache(name, "config.json")
    return Path(found) if isinstance(found, str) else None

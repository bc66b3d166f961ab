"""A model of the simplest kind that vLLM serves, which gives the same reply to everything, and a
look at its server."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from caravan.data.records import Message
from caravan.data.template import encode_prompt
from caravan.training.bpe import train_tokenizer
from caravan.training.models import save_model
from tiny import TEXTS

LENGTH = 8192


def save_model_that_says(reply: str, directory: Path) -> None:
    """The reply is one token of the vocabulary. Nothing is added to a token's embedding on its way
    to the output, where the last token of every prompt meets the reply, and the reply the end."""
    tokenizer = train_tokenizer(TEXTS, vocab_size=320, model_max_length=LENGTH)
    tokenizer.add_tokens([reply])
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, num_hidden_layers=1,
        num_attention_heads=2,  # vLLM has no CPU kernel for heads smaller than 32
        max_position_embeddings=LENGTH, initializer_range=1.0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    inner = model.model
    said = tokenizer.convert_tokens_to_ids(reply)
    last = encode_prompt(tokenizer, (Message(role="user", content="hi"),))[-1]
    with torch.no_grad():
        for layer in inner.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.lm_head.weight.zero_()
        model.lm_head.weight[said] = inner.embed_tokens.weight[last]
        model.lm_head.weight[tokenizer.eos_token_id] = inner.embed_tokens.weight[said]
    save_model(model, tokenizer, directory)


def models_at(address: str, key: str) -> list[str]:
    """What the server at `host:port` serves to whoever has the key."""
    request = urllib.request.Request(
        f"http://{address}/v1/models", headers={"Authorization": f"Bearer {key}"}
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return [model["id"] for model in json.load(answer)["data"]]

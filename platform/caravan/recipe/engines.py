"""Engines: what answers prompts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from caravan.config import Config
from caravan.recipe.common import ChatTemplate, Fraction, Name


class TransformersEngineConfig(Config):
    kind: Literal["transformers"] = "transformers"
    model_name_or_path: str
    chat_template: ChatTemplate | None = None
    """What the model is asked in: `model`, its own, or `tulu`, that of docs/data-formats.md; None
    takes its own where it has one."""
    batch_size: PositiveInt = 64
    """Sequences decoded at once."""


class VLLMEngineConfig(Config):
    kind: Literal["vllm"] = "vllm"
    model_name_or_path: str
    chat_template: ChatTemplate | None = None
    """What the model is asked in: `model`, its own, or `tulu`, that of docs/data-formats.md; None
    takes its own where it has one."""
    tensor_parallel_size: PositiveInt = 1
    max_model_len: PositiveInt = 4096
    gpu_memory_utilization: Fraction = 0.9


class OpenAIEngineConfig(Config):
    """Any OpenAI-compatible endpoint: vLLM's server, a gateway, a provider."""

    kind: Literal["openai"] = "openai"
    base_url: str
    model: str
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key; the key itself never enters a recipe."""
    concurrency: PositiveInt = 16
    timeout_seconds: PositiveFloat = 300.0
    max_retries: NonNegativeInt = 6
    """With exponential back-off, on 429, 5xx and broken connections."""


class ProgramEngineConfig(Config):
    """A scripted responder of the pocket recipe, where other recipes have a hosted model."""

    kind: Literal["program"] = "program"
    program: Name
    """A responder of the pocket recipe."""


EngineConfig = Annotated[
    TransformersEngineConfig | VLLMEngineConfig | OpenAIEngineConfig | ProgramEngineConfig,
    Field(discriminator="kind"),
]

"""Models on disk: plain Hugging Face directories with safetensors."""

from __future__ import annotations

import copy
import ctypes
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.initialization import no_init_weights
from transformers.utils.logging import disable_progress_bar

from caravan.data.template import chat_template
from caravan.data.template_stamp import check_template
from caravan.errors import DataError, some
from caravan.training.kernels import use_fused_kernels
from caravan.training.parallel.ranks import first_device

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
HEAD_EXTRAS = ("final_logit_softcapping", "logits_scaling", "logit_scale")
"""Config fields of models whose logits are more than hidden states times the output head."""

TENSORS_NAMED = 5
"""Tensors listed in an error."""
LOADED_AS = {"dtype": torch.float32, "attn_implementation": "sdpa"}


class Policy(NamedTuple):
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def prepare_torch(cpus: int, seed: int) -> torch.device:
    """Fix threads, algorithms and seed, so that equal runs give equal bytes; gives the device."""
    torch.set_num_threads(cpus)
    # Without it CUDA's matrix products are not the same twice, and torch refuses them.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # Nothing here reads memory before writing it, and filling it all costs a tenth of the time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    _keep_freed_memory()
    torch.manual_seed(seed)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def place(
    model: PreTrainedModel,
    device: torch.device,
    *,
    gradient_checkpointing: bool,
    zero_stage: int = 0,
) -> PreTrainedModel:
    """The model ready to be trained on `device`, and there; under ZeRO-3 still on the host."""
    if gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    use_fused_kernels(model, device)
    return cast(PreTrainedModel, model.to(first_device(device, zero_stage)).train())


def load_policy(directory: Path, *, weights: bool = True, **options: Any) -> Policy:
    """A causal model in float32, in training mode, and its tokenizer.

    Args:
        weights: False leaves them unread; see `empty`.
        options: further ones of `from_pretrained`, where weights are read.

    Raises:
        DataError: the directory holds no model that can be trained safely; says what is missing.
    """
    check_model_directory(directory)
    check_template(directory)
    kind = AutoModelForCausalLM
    model = _load(kind, directory, **options) if weights else _load_empty(kind, directory)
    for name in HEAD_EXTRAS:
        if getattr(model.config, name, None) not in (None, 1, 1.0):
            raise DataError(
                f"{directory}: models with {name} in config.json are not supported: their "
                "log-probabilities need more than the output head"
            )
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise DataError(f"{directory}: the output head is not a linear layer without bias")
    tokenizer = load_tokenizer(directory)
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise DataError(
            f"{directory}: the tokenizer has {len(tokenizer)} tokens but the model has embeddings "
            f"for {rows}; resize the embeddings first"
        )
    return Policy(model.train(), tokenizer)


def load_reward_model(directory: Path, *, weights: bool = True) -> Policy:
    """A sequence-classification model with one label, in float32, and its tokenizer.

    Args:
        weights: False leaves them unread; see `empty`.
    """
    check_model_directory(directory)
    check_template(directory)
    kind = AutoModelForSequenceClassification
    model = _load(kind, directory) if weights else _load_empty(kind, directory)
    if model.config.num_labels != 1:
        raise DataError(f"{directory}: a reward model has one label, not {model.config.num_labels}")
    return Policy(model.train(), load_tokenizer(directory))


def check_reads_tokens_of(
    policy: PreTrainedTokenizerBase, own: PreTrainedTokenizerBase, directory: Path
) -> None:
    """Refuse a reward model that would read other tokens than the policy writes.

    Args:
        own: the reward model's, in `directory`.

    Raises:
        DataError: a token of the policy has another id there, or none.
    """
    if not policy.get_vocab().items() <= own.get_vocab().items():
        raise DataError(
            f"{directory}: the reward model's tokenizer has other tokens than the policy's; take "
            "a reward model that was made from the same base model"
        )


def new_reward_model(directory: Path, *, weights: bool = True) -> Policy:
    """The policy in `directory` as a reward model, and its tokenizer; see `reward_model_from`.

    Args:
        weights: False leaves them unread; see `empty`.
    """
    policy, tokenizer = load_policy(directory, weights=weights)
    if not weights:
        config = _reward_config(policy, tokenizer.pad_token_id)
        return Policy(empty(AutoModelForSequenceClassification, config), tokenizer)
    return Policy(reward_model_from(policy, tokenizer.pad_token_id), tokenizer)


def reward_model_from(policy: PreTrainedModel, pad_token_id: int) -> PreTrainedModel:
    """A copy of `policy` whose output head is replaced by a new one of a single number.

    The head is drawn from N(0, 1/sqrt(d + 1)), d the hidden size (Lambert et al. 2024, section
    5.4), with torch's default generator. 1/sqrt(d + 1) is taken as the standard deviation, as in
    open-instruct.
    """
    config = _reward_config(policy, pad_token_id)
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    model.base_model.load_state_dict(policy.base_model.state_dict())
    with torch.no_grad():
        model.score.weight.normal_(0.0, (config.hidden_size + 1) ** -0.5)
    return cast(PreTrainedModel, model.train())


def _reward_config(policy: PreTrainedModel, pad_token_id: int) -> PretrainedConfig:
    config = copy.deepcopy(policy.config)
    config.num_labels = 1
    config.pad_token_id = pad_token_id
    return config


def empty(kind: Any, config: PretrainedConfig, **options: Any) -> PreTrainedModel:
    """A model in float32 whose weights nobody has written yet: memory is taken when they are.

    Args:
        kind: one of transformers' `Auto` classes.
        options: further ones of `from_config`.
    """
    with no_init_weights():
        model = kind.from_config(config, **{"dtype": torch.float32, **options})
    model.tie_weights()  # else a part of the initialisation that is left out
    return cast(PreTrainedModel, model.train())


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model directory, with an end token and another pad token.

    Raises:
        DataError: one of them is missing, or they are the same.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError) as error:
        raise DataError(f"{directory}: no tokenizer can be loaded: {error}") from error
    if tokenizer.eos_token_id is None:
        raise DataError(f"{directory}: the tokenizer has no end token; set eos_token")
    if tokenizer.pad_token_id is None:
        raise DataError(
            f"{directory}: the tokenizer has no pad token; add `<pad>` and set pad_token (it must "
            "differ from the end token)"
        )
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise DataError(
            f"{directory}: pad and end token are both {tokenizer.eos_token!r}; set pad_token to a "
            "token of its own, or the end of a reply cannot be learned"
        )
    return cast(PreTrainedTokenizerBase, tokenizer)


def save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a directory that `transformers` and vLLM load: equal weights give equal bytes.

    Args:
        weights: take the place of the model's own, where those are spread over ranks.
    """
    disable_progress_bar()
    directory.mkdir(parents=True, exist_ok=True)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.eos_token_id = tokenizer.eos_token_id
    model.config.bos_token_id = tokenizer.bos_token_id
    model.config.use_cache = True
    if model.can_generate():
        model.generation_config = GenerationConfig(
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    model.save_pretrained(directory, state_dict=None if weights is None else dict(weights))
    tokenizer.chat_template = chat_template(tokenizer)
    tokenizer.save_pretrained(directory)
    _make_portable(directory / "tokenizer_config.json")


def check_model_directory(directory: Path) -> None:
    """Refuse what is not a model directory with safetensors.

    Raises:
        DataError: says what is wrong with it.
    """
    if not (directory / "config.json").is_file():
        raise DataError(f"{directory}: no config.json, so this is not a Hugging Face model")
    if not any(directory.glob("*.safetensors")):
        pickled = sorted(p.name for p in directory.iterdir() if p.suffix in PICKLED)
        if pickled:
            raise DataError(
                f"{directory}: weights in {pickled[0]} are pickled, and loading a pickle can run "
                "any code; convert them to model.safetensors"
            )
        raise DataError(f"{directory}: no *.safetensors, so there are no weights")


def read_weights(kind: Any, directory: Path, **options: Any) -> PreTrainedModel:
    """A model with exactly the weights in `directory`: transformers draws at random what it misses.

    Args:
        kind: one of transformers' `Auto` classes.
        options: further ones of `from_pretrained`.

    Raises:
        DataError: tensors are missing, have another shape, or belong to another head.
    """
    disable_progress_bar()
    try:
        model, found = kind.from_pretrained(
            directory,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # they are an error below, which names them
            output_loading_info=True,
            **options,
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise DataError(f"{directory}: the model cannot be loaded: {error}") from error
    body = f"{model.base_model_prefix}."
    problems = {
        "are missing": found["missing_keys"],
        "have another shape than config.json says": {name for name, *_ in found["mismatched_keys"]},
        f"are of a head that {type(model).__name__} does not have": {
            name for name in found["unexpected_keys"] if not name.startswith(body)
        },
    }
    told = [
        f"{some(sorted(names), TENSORS_NAMED)} {what}" for what, names in problems.items() if names
    ]
    if told:
        raise DataError(
            f"{directory}: the weights are not those of a {type(model).__name__}: "
            f"{'; '.join(told)}; copy the model again, whole, or give one of this kind"
        )
    return cast(PreTrainedModel, model)


def _load(kind: Any, directory: Path, **options: Any) -> PreTrainedModel:
    model = read_weights(kind, directory, **LOADED_AS, **options)
    model.config.use_cache = False
    return model


def _load_empty(kind: Any, directory: Path) -> PreTrainedModel:
    """As `_load`, but for the weights."""
    try:
        config = AutoConfig.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{directory}: the model cannot be loaded: {error}") from error
    model = empty(kind, config, **LOADED_AS)
    model.config.use_cache = False
    return model


def _keep_freed_memory() -> None:
    """Let glibc reuse large blocks instead of giving them back to the kernel after each use.

    Every activation is a fresh block of megabytes; mapping its pages anew each time takes about a
    tenth of the time of a training step.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    trim_threshold, mmap_threshold = -1, -3
    mallopt(mmap_threshold, 32 << 20)  # the largest value that glibc takes
    mallopt(trim_threshold, (1 << 31) - 1)


def _make_portable(path: Path) -> None:
    """Equal tokenizers from different places give equal bytes, in words older readers know."""
    config = json.loads(path.read_text())
    if config.get("tokenizer_class") == "TokenizersBackend":
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
    for key in ("name_or_path", "is_local", "local_files_only"):
        config.pop(key, None)
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False, sort_keys=True) + "\n")

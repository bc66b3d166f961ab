"""A reward model, from the SFT policy and the preference pairs (Lambert et al. 2024, table 36).

Inputs: `model` and `pairs`, as in the stage `dpo`. A pair whose completions do not both end within
`max_length` is dropped: the reward is read at the end token.

Output: `model`, a Hugging Face directory of a sequence-classification model with one label.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from caravan.data.io import read_rows
from caravan.data.records import Pair
from caravan.recipe import ImportedBase, RewardModelConfig
from caravan.recipe.paths import model_directory
from caravan.stages.context import StageContext, StageResult
from caravan.stages.ranks.launch import on_ranks

NAME = "reward-model"
VERSION = 1


def external_files(config: RewardModelConfig, recipe_dir: Path) -> Iterable[Path]:
    """The files of a reward model that is taken from a directory."""
    if config.model_name_or_path is not None:
        directory = model_directory(config.model_name_or_path, recipe_dir)
        yield from sorted(path for path in directory.rglob("*") if path.is_file())


def run(
    config: RewardModelConfig, inputs: Mapping[str, Path], context: StageContext
) -> StageResult:
    if config.model_name_or_path is not None:
        from caravan.training.importing import check_reward_model, find_model, import_model

        existing = ImportedBase(model_name_or_path=config.model_name_or_path)
        source = find_model(existing, context.recipe_dir)
        check_reward_model(source)
        target = context.output("model", "model")
        added = import_model(source, target, will_be_tuned=False)
        return StageResult({"added_tokens": added})

    return on_ranks(train, config, inputs, context)


def train(
    config: RewardModelConfig, inputs: Mapping[str, Path], context: StageContext
) -> StageResult:
    """On every rank."""
    # Loaded only when the stage runs: to find that it has nothing to do takes no torch.
    from caravan.stages.passes import with_pass_tokens
    from caravan.stages.trained import save_trained
    from caravan.training.adapters import add_adapters
    from caravan.training.fit import fit, identity
    from caravan.training.models import new_reward_model, place, prepare_torch
    from caravan.training.pairs import longest_pair
    from caravan.training.parallel.ranks import current, reads_weights
    from caravan.training.reward_model import reward_model_job
    from caravan.training.tokenize import check_length, tokenize_pairs

    device = prepare_torch(config.resources.cpus, context.seed)
    weights = reads_weights(config.zero_stage)
    model, tokenizer = new_reward_model(inputs["model"], weights=weights)
    add_adapters(model, config, device)
    check_length(model, config.max_length)
    model = place(
        model,
        device,
        gradient_checkpointing=config.gradient_checkpointing,
        zero_stage=config.zero_stage,
    )
    pairs = read_rows(inputs["pairs"], Pair)
    data = tokenize_pairs(pairs, tokenizer, config.max_length, whole=True)
    config = with_pass_tokens(config, inputs["model"], longest_pair(data.rows))
    job = reward_model_job(
        model,
        data.rows,
        config,
        pad_token_id=tokenizer.pad_token_id,
        seed=context.seed,
    )
    metrics = fit(
        job,
        context,
        identity=identity(NAME, config, context.seed, inputs["model"], data.rows),
        config=config,
    )
    if current().leads:
        save_trained(model, tokenizer, config, inputs["model"], context.output("model", "model"))
    return StageResult({**data.counts, "tokens_per_pass": config.pass_tokens, **metrics})

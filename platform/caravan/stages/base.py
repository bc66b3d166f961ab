"""The base model: one that exists, or a small one that the run pretrains itself.

No inputs. Output: `model`, a Hugging Face directory with safetensors and the chat template that it
is asked in: its own where it has one, else that of Tülu.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from caravan.recipe import ImportedBase, PretrainedBase
from caravan.recipe.paths import model_directory
from caravan.stages.context import StageContext, StageResult

NAME = "base"
VERSION = 3

SAVE_STEPS = 100
WORDINGS = 4000
"""Questions in chat form that the tokenizer sees, so that their words are tokens too."""


def external_files(config: ImportedBase | PretrainedBase, recipe_dir: Path) -> Iterable[Path]:
    """The files of a model that is imported from a directory."""
    if isinstance(config, ImportedBase):
        directory = model_directory(config.model_name_or_path, recipe_dir)
        yield from sorted(path for path in directory.rglob("*") if path.is_file())


def run(
    config: ImportedBase | PretrainedBase, inputs: Mapping[str, Path], context: StageContext
) -> StageResult:
    if isinstance(config, PretrainedBase):
        return pretrain(config, context)
    from caravan.training.importing import find_model, import_model

    source = find_model(config, context.recipe_dir)
    target = context.output("model", "model")
    added = import_model(source, target, chat_template=config.chat_template)
    return StageResult({"added_tokens": added})


def pretrain(config: PretrainedBase, context: StageContext) -> StageResult:
    # Loaded only when the stage runs: to find that it has nothing to do takes no torch.
    from caravan.pocket.corpus import documents, wordings
    from caravan.training.bpe import train_tokenizer
    from caravan.training.fit import fit, identity
    from caravan.training.models import prepare_torch, save_model
    from caravan.training.pretrain import BETAS, as_sft, new_llama, pack_windows
    from caravan.training.sft import sft_job

    device = prepare_torch(config.resources.cpus, context.seed)
    texts = list(documents(config.documents, context.seed))
    tokenizer = train_tokenizer(
        [*texts, *wordings(WORDINGS, context.seed)],
        vocab_size=config.vocab_size,
        model_max_length=config.max_position_embeddings,
        split_digits=config.split_digits,
    )
    rows = pack_windows(texts, tokenizer, config.max_position_embeddings)
    settings = as_sft(config).derive(save_steps=SAVE_STEPS)
    model = new_llama(config, tokenizer).to(device)
    job = sft_job(
        model,
        rows,
        settings,
        pad_token_id=tokenizer.pad_token_id,
        seed=context.seed,
        betas=BETAS,
    )
    metrics = fit(
        job,
        context,
        identity=identity(NAME, settings, context.seed, context.workdir, rows),
        config=settings,
    )
    save_model(model, tokenizer, context.output("model", "model"))
    return StageResult({"parameters": model.num_parameters(), "windows": len(rows), **metrics})

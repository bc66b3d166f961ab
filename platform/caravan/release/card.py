"""The model card (Mitchell et al. 2019, arXiv:1810.03993) as the README.md of a model directory.

Every number in it is the registry's. Front matter as the Hugging Face hub reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from caravan.data.card import cell, table
from caravan.evals.caveats import lacking, selected_by, selected_by_scores
from caravan.registry import ScoreRow, StageRunRow, scale_of
from caravan.release.facts import ModelFacts
from caravan.stages.candidates import SELECT, TAKEN, selects_from

HYPERPARAMETERS = {
    "base": ("kind", "model_name_or_path", "revision", "max_steps", "tokens_per_step",
             "learning_rate", "hidden_size", "num_hidden_layers", "vocab_size"),
    "merge": (),
}  # fmt: skip
"""Of stages that are not trained as the others; of those, every setting is listed."""
LEFT_OUT = frozenset({"resources", "save_steps", "tokens_per_pass"})
"""Settings that say how a model was computed, not what was computed."""
HUB_LICENSES = {
    "Apache-2.0": "apache-2.0", "MIT": "mit", "CC-BY-4.0": "cc-by-4.0", "CC0-1.0": "cc0-1.0",
    "CC-BY-SA-4.0": "cc-by-sa-4.0", "CC-BY-NC-4.0": "cc-by-nc-4.0", "ODC-By-1.0": "odc-by",
}  # fmt: skip
"""SPDX identifiers as the hub writes them."""


def model_card(facts: ModelFacts, *, template_hash: str) -> str:
    """The card in Markdown."""
    parts = [_front_matter(facts), *_opening(facts), *_training(facts), *_data(facts)]
    parts += [*_evaluation(facts), *_reproduction(facts, template_hash)]
    return "\n".join(parts).rstrip() + "\n"


def title(facts: ModelFacts) -> str:
    return f"{facts.run.name}-{facts.stage.node}"


def _front_matter(facts: ModelFacts) -> str:
    licenses = facts.licenses
    content: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["caravan", facts.stage.stage],
    }
    if len(licenses) == 1:
        content["license"] = HUB_LICENSES.get(licenses[0], "other")
    elif licenses:
        content |= {"license": "other", "license_name": "see-training-data"}
    if facts.base and not facts.base.startswith((".", "/")):
        content["base_model"] = facts.base
    return f"---\n{yaml.safe_dump(content, sort_keys=False, allow_unicode=True)}---\n"


def _opening(facts: ModelFacts) -> Iterator[str]:
    base = f"`{cell(facts.base)}`" if facts.base else "a base model that the run pretrained itself"
    if facts.revision:
        base += f" at revision {cell(facts.revision)}"
    yield f"# {cell(title(facts))}\n"
    if description := facts.run.recipe.get("description"):
        yield f"{cell(description)}\n"
    made = " → ".join(stage.node for stage in facts.models)
    yield f"Made from {base} by the recipe `{cell(facts.run.name)}`: {made}.\n"


def _training(facts: ModelFacts) -> Iterator[str]:
    yield "## Training\n"
    for stage in facts.models:
        settings = dict(_flat(facts.settings(stage)))
        if names := HYPERPARAMETERS.get(stage.stage):
            settings = {name: settings[name] for name in names if name in settings}
        if stage.stage == "merge":
            settings = {f"weight of {name}": stage.metrics.get(f"weight/{name.split('-')[1]}", "")
                        for name in stage.inputs}  # fmt: skip
        if stage.stage == SELECT:
            step = f"{stage.metrics.get('step', 0):.0f}"
            settings = {f"step of {selects_from(stage.node)}": step}
        if TAKEN in stage.metrics:
            settings["step that was taken"] = f"{stage.metrics[TAKEN]:.0f}"
        yield f"### {stage.node}\n"
        if settings:
            yield "\n".join(table(("setting", "value"), settings.items()))
            yield ""
        if stage.node != facts.stage.node:  # whose own selection is told beside its scores
            yield from _selection(facts, stage)


def _selection(facts: ModelFacts, stage: StageRunRow) -> Iterator[str]:
    """What is to be known of scores, where `stage` has selected a policy by them."""
    if stage.stage == SELECT:
        of = selects_from(stage.node)
        tasks = selected_by(facts.run.recipe).get(of, [])
        yield f"{cell(selected_by_scores({of: tasks}))}\n"


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    for name, value in settings.items():
        if name in LEFT_OUT:
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            yield f"{prefix}{name}", ", ".join(map(str, value))
        elif value is not None:
            yield f"{prefix}{name}", value


def _data(facts: ModelFacts) -> Iterator[str]:
    if facts.sources or facts.pairs:
        yield "## Training data\n"
        yield f"Licences: {', '.join(map(cell, facts.licenses))}.\n"
    if facts.sources:
        yield from _rows(facts)
    if facts.pairs:
        yield f"{sum(source.pairs for source in facts.pairs):,} preference pairs.\n"
        yield "\n".join(
            table(
                ("source of pairs", "licence", "skill", "pairs", "provenance"),
                [(s.name, s.license, s.skill, s.pairs, s.provenance) for s in facts.pairs],
            )
        )
        yield ""


def _rows(facts: ModelFacts) -> Iterator[str]:
    total = sum(source.kept for source in facts.sources)
    mixed = sum(source.mixed for source in facts.sources)
    trained = [source.trained for source in facts.sources if source.trained is not None]
    used = f", of which SFT trained on {sum(trained):,}" if trained else ""
    yield f"{total:,} rows after curation; {mixed:,} rows in the SFT mix{used}.\n"
    yield "\n".join(
        table(
            (
                "source", "licence", "skill", "rows kept", "rows in the SFT mix",
                "rows trained on in SFT", "provenance",
            ),
            [
                (
                    s.name, s.license, s.skill, s.kept, s.mixed,
                    "not known" if s.trained is None else s.trained, s.provenance,
                )
                for s in facts.sources
            ],
        )
    )  # fmt: skip
    yield ""


def _evaluation(facts: ModelFacts) -> Iterator[str]:
    yield "## Evaluation\n"
    if not facts.scores:
        yield "This model was not evaluated in its run.\n"
        return
    yield "With 95 % confidence intervals. Shares are in per cent; mean ratings are from 1 to 5.\n"
    rows = [(s.task, s.suite, s.metric, *_numbers(s), s.n) for s in facts.scores]
    yield "\n".join(table(("task", "suite", "metric", "score", "95 % interval", "n"), rows))
    yield ""
    yield from _selection(facts, facts.stage)


def _numbers(score: ScoreRow) -> tuple[str, str]:
    scale, digits = scale_of(score.metric)
    value, low, high = (
        f"{scale * number:.{digits}f}" for number in (score.value, score.low, score.high)
    )
    caveat = lacking(score)
    return f"{value} ({caveat})" if caveat else value, f"{low} to {high}"


def _reproduction(facts: ModelFacts, template_hash: str) -> Iterator[str]:
    yield "## Where it comes from\n"
    yield "\n".join(
        table(
            ("", ""),
            [
                ("run", facts.run.id),
                ("stage", facts.stage.node),
                ("seed", facts.run.seed),
                ("digest of the recipe", facts.run.recipe_digest),
                ("digest of the model", facts.digest),
                ("SHA-256 of the chat template", template_hash),
            ],
        )
    )
    yield "\nThe same recipe and seed give the same digests on the same kind of machine."

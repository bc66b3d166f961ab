"""The data stages one after another, on the sources of the pocket recipe."""

from pathlib import Path

from caravan.data.io import read_rows
from caravan.data.mixing import original_id
from caravan.data.records import Conversation
from caravan.recipe import (
    DecontaminateConfig,
    EvalTask,
    MixConfig,
    ProgramEngineConfig,
    SamplePromptsConfig,
    SynthesizeConfig,
)
from caravan.stages import curate, decontaminate, mix, sample_prompts, synthesize
from caravan.stages.configs import (
    CurateStageConfig,
    DecontaminateStageConfig,
    SynthesizeStageConfig,
)

NAMES = ("math-book", "notes", "leaky", "chat-crowd")
SOURCES = [
    {
        "name": name,
        "origin": {"kind": "generated", "generator": name, "count": 150},
        "license": "Apache-2.0",
        "skill": name,
    }
    for name in NAMES
]
TASK = {
    "name": "personas",
    "kind": "grade_school_math",
    "skill": "math",
    "count": 50,
    "prompt_engine": "writer",
    "response_engine": "responder",
    "verifier": "gsm8k",
}
ENGINES = {
    "writer": ProgramEngineConfig(program="math-writer"),
    "responder": ProgramEngineConfig(program="careful"),
}


def run_chain(make_context, root: str) -> dict[str, Path]:
    """Every output of every stage, as `stage/output`."""
    outputs: dict[str, Path] = {}

    def run(stage, config, **inputs: str) -> None:
        context = make_context(f"{root}/{stage.NAME}")
        stage.run(config, {name: outputs[of] for name, of in inputs.items()}, context)
        outputs.update({f"{stage.NAME}/{name}": path for name, path in context.outputs.items()})

    synthesis = SynthesizeConfig.model_validate({"tasks": [TASK]})
    tasks = (EvalTask(name="math", task="pocket-math"),)
    components = [{"source": name, "weight": 0.5} for name in (*NAMES, "personas")]
    run(curate, CurateStageConfig.model_validate({"sources": SOURCES}))
    run(synthesize, SynthesizeStageConfig(synthesize=synthesis, engines=ENGINES))
    run(
        decontaminate,
        DecontaminateStageConfig(decontaminate=DecontaminateConfig(), tasks=tasks),
        curated="curate/dataset",
        synthesized="synthesize/dataset",
    )
    run(
        mix,
        MixConfig.model_validate({"dataset_mixer_list": components}),
        dataset="decontaminate/dataset",
    )
    run(
        sample_prompts,
        SamplePromptsConfig(used_in_sft=20, unused_in_sft=30),
        dataset="decontaminate/dataset",
        mix="mix/dataset",
    )
    return outputs


def test_from_sources_to_prompts_twice(make_context):
    one, two = run_chain(make_context, "one"), run_chain(make_context, "two")
    for name, output in one.items():
        for path in output.iterdir():
            assert path.read_bytes() == (two[name] / path.name).read_bytes(), (name, path.name)

    def rows(name: str) -> list[Conversation]:
        return list(read_rows(one[name], Conversation))

    clean, chosen, prompts = (
        rows(name) for name in ("decontaminate/dataset", "mix/dataset", "sample-prompts/prompts")
    )
    assert {row.source for row in clean} == {*NAMES, "personas"} - {"leaky"}
    assert {row.id for row in clean if row.source == "personas"}
    used = {original_id(row.id) for row in chosen}
    assert used < {row.id for row in clean}
    assert sum(prompt.id in used for prompt in prompts) == 20
    assert len(prompts) == 50

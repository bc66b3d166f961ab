"""Compiled recipes, and an executor that only records what a pipeline would run."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import yaml
from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2
from kfp_pipeline import End, Pipeline, Step

from caravan.cluster.profile import ClusterProfile
from caravan.recipe import Recipe
from caravan.settings import Settings
from caravan_pipelines.launch import kubeflow


class Recorder:
    """An executor that runs nothing: every output is a text of its step."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def run(self, step: Step, stop: threading.Event) -> End:
        self.steps.append(step)
        given = json.loads(step.command[step.command.index("--executor_input") + 1])
        names = given["outputs"]["parameters"]
        return End(0, {"parameterValues": {name: f"{step.name}/{name}" for name in names}})

    def step(self, name: str) -> Step:
        return next(step for step in self.steps if step.name == name)

    def inputs(self, name: str) -> dict:
        command = self.step(name).command
        given = json.loads(command[command.index("--executor_input") + 1])
        return given["inputs"]["parameterValues"]


def compiled(recipe: Recipe, profile: ClusterProfile, directory: Path) -> tuple[dict, dict]:
    """The two documents of a compiled recipe, each checked strictly by KFP's own schema."""
    path = directory / "pipeline.yaml"
    where = kubeflow.placement(recipe, profile, Settings(), "a-run", "ann")
    kubeflow.compile_pipeline(recipe, where, path, "about")
    spec, platform = yaml.safe_load_all(path.read_text())
    json_format.ParseDict(spec, pipeline_spec_pb2.PipelineSpec())
    json_format.ParseDict({"platforms": platform["platforms"]}, pipeline_spec_pb2.PlatformSpec())
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    assert set(executors) == set(spec["deploymentSpec"]["executors"])
    for executor in executors.values():
        json_format.ParseDict(executor, kubernetes_executor_config_pb2.KubernetesExecutorConfig())
    return spec, platform


def recorded(recipe: Recipe, profile: ClusterProfile, directory: Path) -> Recorder:
    recorder = Recorder()
    Pipeline(*compiled(recipe, profile, directory), recorder).run({"run": "a-run"})
    return recorder

"""Runs a compiled Kubeflow pipeline from its file alone, as Kubeflow Pipelines' driver would.

For tests. Covered: container steps, nested pipelines, `ParallelFor` over constants and parameters
(nested too), `Collected`, parameters of every kind, defaults, placeholders, retries with back-off,
dependencies, cancelling. Independent steps run at the same time.

Not covered, and refused: conditions, exit handlers, `OneOf`, importers, artifacts as inputs,
workspaces, and claims that a pipeline makes itself. There is no caching and no metadata service.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Protocol

OUT_DIR = "/tmp/kfp"
"""Where a step writes its outputs, in its own file system."""
PARAMETER = re.compile(r"\{\{\$\.inputs\.parameters\['([^']+)'\]\}\}")
SELECTOR = re.compile(r'parseJson\(string_value\)\["([^"]+)"\]')


class NotCovered(Exception):
    """The pipeline uses what this stand-in does not do."""


class StepFailed(Exception):
    """A step failed, its retries included."""


class Stopped(Exception):
    """The run was cancelled."""


@dataclass(frozen=True)
class Step:
    """One container to run: an attempt at one task."""

    name: str
    """Path of the task in the pipeline, unique in the run: `respond.for-loop-2.1.respond`."""
    attempt: int
    image: str
    command: list[str]
    """Command and arguments, without placeholders."""
    env: dict[str, str]
    resources: Mapping[str, Any]
    """Of the pipeline's container spec."""
    kubernetes: Mapping[str, Any]
    """The executor's part of the second document."""
    artifacts: tuple[str, ...]
    """Names of the output artifacts, each a file below OUT_DIR."""


@dataclass(frozen=True)
class End:
    """How a step's container ended."""

    exit_code: int
    outputs: Mapping[str, Any] = field(default_factory=dict)
    """KFP's executor output: parameter values, artifact metadata."""
    artifacts: Mapping[str, str] = field(default_factory=dict)
    """Text of the output artifacts that are files."""
    why: str = ""
    lost: bool = False
    """Its pod is gone: an error to Argo Workflows, whose default is to retry failures only."""


class Executor(Protocol):
    def run(self, step: Step, stop: threading.Event) -> End: ...


@dataclass
class TaskDetail:
    """What the run tells of one attempt."""

    step: Step
    state: str = "RUNNING"
    end: End | None = None
    started: float = field(default_factory=time.time)
    ended: float | None = None


class Pipeline:
    """One execution of a compiled pipeline."""

    def __init__(
        self,
        spec: Mapping[str, Any],
        platform: Mapping[str, Any],
        executor: Executor,
        *,
        stop: threading.Event | None = None,
        backoff: float = 1.0,
    ) -> None:
        """`backoff` scales the seconds between retries; tests do not have them all."""
        self._spec, self._executor, self._backoff = spec, executor, backoff
        deployment = platform.get("platforms", {}).get("kubernetes", {}).get("deploymentSpec", {})
        self._kubernetes = deployment.get("executors", {})
        self.stop = stop or threading.Event()
        self.details: list[TaskDetail] = []

    def run(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Run to the end; gives the pipeline's output parameters."""
        root = self._spec["root"]
        return self._component(root, self._with_defaults(root, parameters), "")

    def _component(
        self, component: Mapping[str, Any], inputs: dict[str, Any], path: str,
        task: Mapping[str, Any] = {},
    ) -> dict[str, Any]:  # fmt: skip
        if "dag" in component:
            return self._dag(component["dag"], inputs, path)
        return self._container(component, inputs, path, task)

    # --- pipelines --------------------------------------------------------------------------

    def _dag(self, dag: Mapping[str, Any], inputs: dict[str, Any], path: str) -> dict[str, Any]:
        tasks, made = dag["tasks"], {}
        waiting, running, failed = dict(tasks), {}, []  # type: ignore[var-annotated]
        with ThreadPoolExecutor(max_workers=len(tasks)) as pool:
            while running or (waiting and not failed):
                ready = [] if failed else [
                    name for name, task in waiting.items()
                    if all(one in made for one in _before(task))
                ]  # fmt: skip
                for name in ready:
                    task = waiting.pop(name)
                    future = pool.submit(self._task, task, inputs, dict(made), f"{path}{name}")
                    running[future] = name
                if not running:
                    raise NotCovered(f"{path}: tasks {sorted(waiting)} wait for each other")
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    name = running.pop(future)
                    try:
                        made[name] = future.result()
                    except Exception as error:
                        failed.append(error)
        if failed:
            raise failed[0]
        return {
            name: _dag_output(name, output, made)
            for name, output in dag.get("outputs", {}).get("parameters", {}).items()
        }

    def _task(
        self, task: Mapping[str, Any], given: dict[str, Any], made: dict[str, Any], path: str
    ) -> dict[str, Any]:
        _refuse(task, path)
        component = self._spec["components"][task["componentRef"]["name"]]
        if iterator := task.get("parameterIterator"):
            return self._loop(task, component, iterator, given, made, path)
        inputs = self._with_defaults(component, _resolve(task, given, made))
        return self._component(component, inputs, f"{path}.", task)

    def _loop(
        self, task: Mapping[str, Any], component: Mapping[str, Any], iterator: Mapping[str, Any],
        given: dict[str, Any], made: dict[str, Any], path: str,
    ) -> dict[str, Any]:  # fmt: skip
        inputs = _resolve(task, given, made)
        items = iterator["items"]
        if "raw" in items:
            values = json.loads(items["raw"])
        else:
            values = inputs[items["inputParameter"]]
            values = json.loads(values) if isinstance(values, str) else values
        at_once = task.get("iteratorPolicy", {}).get("parallelismLimit") or len(values) or 1

        def one(number: int) -> dict[str, Any]:
            own = {**inputs, iterator["itemInput"]: values[number]}
            filled = self._with_defaults(component, own)
            return self._component(component, filled, f"{path}.{number}.", task)

        with ThreadPoolExecutor(max_workers=at_once) as pool:
            results = list(pool.map(one, range(len(values))))
        names = component.get("outputDefinitions", {}).get("parameters", {})
        return {name: [result[name] for result in results] for name in names}

    def _with_defaults(
        self, component: Mapping[str, Any], given: Mapping[str, Any]
    ) -> dict[str, Any]:
        inputs = dict(given)
        for name, definition in component.get("inputDefinitions", {}).get("parameters", {}).items():
            if name in inputs:
                continue
            if "defaultValue" in definition:
                inputs[name] = definition["defaultValue"]
            elif not definition.get("isOptional"):
                raise StepFailed(f"parameter {name} has no value")
        return inputs

    # --- containers -------------------------------------------------------------------------

    def _container(
        self, component: Mapping[str, Any], inputs: dict[str, Any], path: str,
        task: Mapping[str, Any],
    ) -> dict[str, Any]:  # fmt: skip
        label = component["executorLabel"]
        executor = self._spec["deploymentSpec"]["executors"][label]
        if "container" not in executor:
            raise NotCovered(f"{path}: executor {label} has no container")
        container = executor["container"]
        artifacts = component.get("outputDefinitions", {}).get("artifacts", {})
        parameters = component.get("outputDefinitions", {}).get("parameters", {})
        own = {name: inputs[name] for name in component.get("inputDefinitions", {})
               .get("parameters", {}) if name in inputs}  # fmt: skip
        everything = json.dumps(_executor_input(own, parameters, artifacts))
        words = [*container.get("command", []), *container.get("args", [])]
        retry = task.get("retryPolicy", {})
        elapsed = 0.0
        for attempt in range(int(retry.get("maxRetryCount", 0)) + 1):
            if attempt:
                pause = _backoff_seconds(retry, attempt)
                if elapsed + pause > _seconds(retry, "backoffMaxDuration", 3600):
                    raise StepFailed(f"{path.rstrip('.')}: Backoff would exceed max duration limit")
                self._pause(pause)
                elapsed += pause
            if self.stop.is_set():
                raise Stopped(path)
            step = Step(
                name=path.rstrip("."),
                attempt=attempt,
                image=_fill(container["image"], inputs),
                command=[everything if w == "{{$}}" else _fill(w, inputs) for w in words],
                env={
                    e["name"]: _fill(e.get("value", ""), inputs) for e in container.get("env", [])
                },
                resources=json.loads(_fill(json.dumps(container.get("resources", {})), inputs)),
                kubernetes=self._kubernetes.get(label, {}),
                artifacts=tuple(artifacts),
            )
            detail = TaskDetail(step)
            self.details.append(detail)
            end = self._executor.run(step, self.stop)
            detail.end, detail.ended = end, time.time()
            detail.state = "FAILED" if end.exit_code else "SUCCEEDED"
            elapsed += detail.ended - detail.started
            if self.stop.is_set():
                raise Stopped(path)
            if end.lost:
                break
            if not end.exit_code:
                values = end.outputs.get("parameterValues", {})
                if missing := [name for name in parameters if name not in values]:
                    raise StepFailed(f"{step.name}: did not write its outputs {missing}")
                return {name: values[name] for name in parameters}
        raise StepFailed(f"{path.rstrip('.')}: {end.why or f'exit code {end.exit_code}'}")

    def _pause(self, seconds: float) -> None:
        self.stop.wait(seconds * self._backoff)


# --- values -------------------------------------------------------------------------------------


def _before(task: Mapping[str, Any]) -> set[str]:
    """The tasks that must have ended before this one."""
    named = {
        value["taskOutputParameter"]["producerTask"]
        for value in task.get("inputs", {}).get("parameters", {}).values()
        if "taskOutputParameter" in value
    }
    return named | set(task.get("dependentTasks", []))


KNOWN = {
    "cachingOptions", "componentRef", "dependentTasks", "inputs", "iteratorPolicy",
    "parameterIterator", "retryPolicy", "taskInfo",
}  # fmt: skip


def _refuse(task: Mapping[str, Any], path: str) -> None:
    unknown = set(task) - KNOWN
    if task.get("inputs", {}).get("artifacts"):
        unknown.add("inputs.artifacts")
    if unknown:
        raise NotCovered(f"task {path}: {', '.join(sorted(unknown))}")


def _resolve(
    task: Mapping[str, Any], given: Mapping[str, Any], made: Mapping[str, Any]
) -> dict[str, Any]:
    inputs = {}
    for name, value in task.get("inputs", {}).get("parameters", {}).items():
        inputs[name] = _value(value, given, made)
    return {name: _fill(value, inputs) for name, value in inputs.items()}


def _value(value: Mapping[str, Any], given: Mapping[str, Any], made: Mapping[str, Any]) -> Any:
    if "componentInputParameter" in value:
        found = given[value["componentInputParameter"]]
    elif "taskOutputParameter" in value:
        source = value["taskOutputParameter"]
        found = made[source["producerTask"]][source["outputParameterKey"]]
    elif "runtimeValue" in value:
        found = value["runtimeValue"]["constant"]
    else:
        raise NotCovered(f"input {value}")
    if selector := value.get("parameterExpressionSelector"):
        key = SELECTOR.fullmatch(selector)
        if key is None:
            raise NotCovered(f"selector {selector}")
        found = (json.loads(found) if isinstance(found, str) else found)[key[1]]
    return found


def _fill(value: Any, inputs: Mapping[str, Any]) -> Any:
    """`value` with its placeholders replaced, where it is a text that has some."""
    if not isinstance(value, str):
        return value

    def text(match: re.Match[str]) -> str:
        found = inputs[match[1]]
        return found if isinstance(found, str) else json.dumps(found)

    return PARAMETER.sub(text, value)


def _dag_output(name: str, output: Mapping[str, Any], made: Mapping[str, Any]) -> Any:
    source = output.get("valueFromParameter")
    if source is None:
        raise NotCovered(f"output {name}: {output}")
    return made[source["producerSubtask"]][source["outputParameterKey"]]


def _executor_input(
    inputs: Mapping[str, Any], parameters: Mapping[str, Any], artifacts: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "inputs": {"parameterValues": dict(inputs)},
        "outputs": {
            "parameters": {n: {"outputFile": f"{OUT_DIR}/parameters/{n}"} for n in parameters},
            "artifacts": {
                name: {
                    "artifacts": [
                        {"name": name, "uri": f"{OUT_DIR}/artifacts/{name}",
                         "type": spec["artifactType"], "metadata": {}}
                    ]
                }
                for name, spec in artifacts.items()
            },
            "outputFile": f"{OUT_DIR}/outputs.json",
        },
    }  # fmt: skip


def _backoff_seconds(retry: Mapping[str, Any], attempt: int) -> float:
    """Argo Workflows' pause before a retry; it has no bound but the window of all attempts."""
    factor = float(retry.get("backoffFactor", 1))
    return _seconds(retry, "backoffDuration", 0) * factor ** (attempt - 1)


def _seconds(retry: Mapping[str, Any], name: str, default: float) -> float:
    return float(str(retry.get(name, f"{default}s")).rstrip("s"))

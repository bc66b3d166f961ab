"""The chart, rendered by Helm's own engine; no cluster."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import helm_python
import yaml
from helm_python import _native

CHART = Path(__file__).parents[2] / "helm" / "caravan"
VARIANTS = sorted(CHART.glob("ci/*.yaml"))
NEWEST, OLDEST = "v1.36.0", "v1.20.2"
"""Kubernetes versions that the chart is rendered for: Helm's own, and Chart.yaml's oldest."""


@dataclass(frozen=True)
class Rendered:
    """What a release would consist of."""

    objects: list[dict[str, Any]]
    notes: str

    def all(self, kind: str) -> list[dict[str, Any]]:
        return [o for o in self.objects if o["kind"] == kind]

    def one(self, kind: str, name: str) -> dict[str, Any]:
        found = [o for o in self.all(kind) if o["metadata"]["name"] == name]
        assert len(found) == 1, f"{len(found)} {kind} {name}; there are {self.names(kind)}"
        return found[0]

    def names(self, kind: str) -> set[str]:
        return {o["metadata"]["name"] for o in self.all(kind)}

    def pods(self) -> dict[str, dict[str, Any]]:
        """Name of each object that makes pods, to its pod template."""
        found = {}
        for object_ in self.objects:
            spec = object_.get("spec", {})
            if object_["kind"] == "Pod":
                template = object_
            elif object_["kind"] == "CronJob":
                template = spec["jobTemplate"]["spec"]["template"]
            elif object_["kind"] == "TrainingRuntime":
                (job,) = spec["template"]["spec"]["replicatedJobs"]
                template = job["template"]["spec"]["template"]
            elif object_["kind"] in ("Deployment", "StatefulSet", "Job"):
                template = spec["template"]
            else:
                continue
            found[f"{object_['kind']}/{object_['metadata']['name']}"] = template
        return found


def render_chart(
    values: Mapping[str, Any],
    *,
    chart: Path = CHART,
    version: str = NEWEST,
    upgrade: bool = False,
    namespace: str = "ml",
) -> Rendered:
    # The SDK's `render` has no argument for Kubernetes' version; the library below it does.
    options = {"kube_version": version, "name": "caravan", "namespace": namespace,
               "is_upgrade": upgrade, "is_install": not upgrade}  # fmt: skip
    with helm_python.Chart.load(chart) as loaded:
        files: dict[str, str] = json.loads(
            _native.call_string(
                "helm_render", loaded._raw(), json.dumps(values), json.dumps(options)
            )
        )
    notes = "".join(text for path, text in files.items() if path.endswith("NOTES.txt"))
    objects = [
        document
        for path, text in sorted(files.items())
        if not path.endswith("NOTES.txt")
        for document in yaml.safe_load_all(text)
        if document
    ]
    return Rendered(objects, notes)


def variant(name: str) -> dict[str, Any]:
    return yaml.safe_load((CHART / "ci" / f"{name}.yaml").read_text("utf-8"))

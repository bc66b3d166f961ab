"""Run one step of a pipeline: as a process of this machine, or as a pod of a real cluster.

A step's outputs come back as Kubeflow Pipelines' launcher would read them: the file of output
values, and the files of its artifacts.
"""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cluster_client import read_log
from kfp_pipeline import OUT_DIR, End, Step

POLL_SECONDS = 0.2
MARK = "<<kfp-stand-in>>"


class Processes:
    """Steps as processes of this machine. Volumes are directories, secrets a dictionary.

    Not covered: images, resources, placement, security.
    """

    def __init__(
        self,
        directory: Path,
        *,
        secrets: Mapping[str, Mapping[str, str]] = {},
        config_maps: Mapping[str, Mapping[str, str]] = {},
        at_once: int = 2,
    ) -> None:
        self._directory, self._secrets, self._config_maps = directory, secrets, config_maps
        self._slots = threading.Semaphore(at_once)

    def run(self, step: Step, stop: threading.Event) -> End:
        with self._slots:
            return End(143, why="cancelled") if stop.is_set() else self._run(step, stop)

    def _run(self, step: Step, stop: threading.Event) -> End:
        own = self._directory / "pods" / f"{step.name}-{step.attempt}"
        (own / "kfp" / "artifacts").mkdir(parents=True)
        mounts = self._mounts(step, own)
        here = {OUT_DIR: str(own / "kfp"), **mounts}
        command = [word.replace(OUT_DIR, here[OUT_DIR]) for word in step.command]
        with (own / "log.txt").open("wb") as log:
            process = subprocess.Popen(
                command, env=self._environment(step, mounts, own.name), cwd=own,
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
            while process.poll() is None:
                if stop.is_set():
                    os.killpg(process.pid, signal.SIGTERM)
                    process.wait()
                time.sleep(POLL_SECONDS)
        code = process.returncode if process.returncode >= 0 else 128 - process.returncode
        outputs = own / "kfp" / "outputs.json"
        files = {name: own / "kfp" / "artifacts" / name for name in step.artifacts}
        return End(
            code,
            json.loads(outputs.read_text()) if outputs.exists() else {},
            {name: path.read_text() for name, path in files.items() if path.is_file()},
            why=f"exit code {code}: {(own / 'log.txt').read_text()[-2000:]}" if code else "",
        )

    def _mounts(self, step: Step, own: Path) -> dict[str, str]:
        """Path in the container to the directory that stands for it."""
        config, found = step.kubernetes, {}
        for mount in config.get("emptyDirMounts", []):
            found[mount["mountPath"]] = own / "volumes" / mount["volumeName"]
        for mount in config.get("pvcMount", []):
            claim = mount.get("constant") or mount["pvcNameParameter"]["runtimeValue"]["constant"]
            path = self._directory / "claims" / claim / mount.get("subPath", "")
            found[mount["mountPath"]] = path
        for path in found.values():
            path.mkdir(parents=True, exist_ok=True)
        return {mount: str(path) for mount, path in found.items()}

    def _environment(self, step: Step, mounts: Mapping[str, str], pod: str) -> dict[str, str]:
        bin_dir = Path(sys.executable).parent
        values = {"PATH": f"{bin_dir}:{os.environ['PATH']}", **step.env}
        for name, value in step.env.items():
            for mount, path in mounts.items():
                if value == mount or value.startswith(f"{mount}/"):
                    values[name] = path + value.removeprefix(mount)
        config = step.kubernetes
        for source in config.get("secretAsEnv", []):
            for key in source["keyToEnv"]:
                values[key["envVar"]] = self._secrets[_name(source, "secret")][key["secretKey"]]
        for source in config.get("configMapAsEnv", []):
            for key in source["keyToEnv"]:
                found = self._config_maps[_name(source, "configMap")]
                values[key["envVar"]] = found[key["configMapKey"]]
        for source in config.get("fieldPathAsEnv", []):
            values[source["name"]] = pod if source["fieldPath"] == "metadata.name" else "here"
        return values


def _name(source: Mapping[str, Any], kind: str) -> str:
    """Name of a Secret, ConfigMap or claim: a constant of the compiled pipeline."""
    plain = source.get(f"{kind}Name")
    return plain or source[f"{kind}NameParameter"]["runtimeValue"]["constant"]


# --- pods ---------------------------------------------------------------------------------------

WRAPPED = (
    'mkdir -p "$OUT/artifacts" "$OUT/parameters"; "$@"; code=$?; printf "\\n%s\\n" "$MARK"; '
    'for file in "$OUT/outputs.json" "$OUT"/artifacts/*; do if [ -f "$file" ]; then '
    'printf "%s " "${file##*/}"; base64 -w0 "$file"; echo; fi; done; exit $code'
)
"""Runs the step's command and then prints its outputs, where Kubeflow's launcher uploads them."""


def pod_of(step: Step, *, run_id: str, service_account: str) -> dict[str, Any]:
    """The pod that Kubeflow Pipelines' driver makes of a step's spec."""
    config = step.kubernetes
    env = [{"name": name, "value": value} for name, value in step.env.items()]
    env += [{"name": "OUT", "value": OUT_DIR}, {"name": "MARK", "value": MARK}]
    for source in config.get("secretAsEnv", []):
        name = _name(source, "secret")
        env += [
            _from(k["envVar"], "secretKeyRef", name, k["secretKey"]) for k in source["keyToEnv"]
        ]
    for source in config.get("configMapAsEnv", []):
        name = _name(source, "configMap")
        env += [
            _from(k["envVar"], "configMapKeyRef", name, k["configMapKey"])
            for k in source["keyToEnv"]
        ]
    for source in config.get("fieldPathAsEnv", []):
        reference = {"fieldRef": {"fieldPath": source["fieldPath"]}}
        env.append({"name": source["name"], "valueFrom": reference})
    volumes, mounts = _volumes(config)
    identity = config.get("securityContext", {})
    container: dict[str, Any] = {
        "name": "main",
        "image": step.image,
        "command": ["sh", "-c", WRAPPED, "sh", *step.command],
        "env": env,
        "resources": _resources(step.resources),
        "volumeMounts": mounts,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
            **{k: int(v) if isinstance(v, str) else v for k, v in identity.items()},
        },
    }
    if policy := config.get("imagePullPolicy"):
        container["imagePullPolicy"] = policy
    spec: dict[str, Any] = {
        "restartPolicy": "Never", "containers": [container], "volumes": volumes,
    }  # fmt: skip
    if service_account:
        spec["serviceAccountName"] = service_account
    if labels := config.get("nodeSelector", {}).get("labels"):
        spec["nodeSelector"] = labels
    if tolerations := config.get("tolerations"):
        spec["tolerations"] = tolerations
    if seconds := config.get("activeDeadlineSeconds"):
        spec["activeDeadlineSeconds"] = int(seconds)
    if secrets := config.get("imagePullSecret"):
        spec["imagePullSecrets"] = [{"name": _name(s, "secret")} for s in secrets]
    metadata = config.get("podMetadata", {})
    name = re.sub(r"[^a-z0-9-]+", "-", f"{run_id[:8]}-{step.name}-{step.attempt}".lower())
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name[-63:].strip("-"),
            "labels": {**metadata.get("labels", {}), "pipeline/runid": run_id},
            "annotations": metadata.get("annotations", {}),
        },
        "spec": spec,
    }


def _from(variable: str, kind: str, name: str, key: str) -> dict[str, Any]:
    return {"name": variable, "valueFrom": {kind: {"name": name, "key": key}}}


def _resources(spec: Mapping[str, Any]) -> dict[str, Any]:
    limits, requests = {}, {}
    for name, there in (("cpu", "Cpu"), ("memory", "Memory")):
        if value := spec.get(f"resource{there}Limit"):
            limits[name] = value
        if value := spec.get(f"resource{there}Request"):
            requests[name] = value
    if accelerator := spec.get("accelerator"):
        kind = accelerator.get("resourceType") or accelerator["type"]
        limits[kind] = str(accelerator.get("resourceCount") or accelerator["count"])
    return {"limits": limits, "requests": requests}


def _volumes(config: Mapping[str, Any]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    volumes, mounts = {}, []
    for mount in config.get("emptyDirMounts", []):
        source = {"medium": mount.get("medium"), "sizeLimit": mount.get("sizeLimit")}
        volumes[mount["volumeName"]] = {"emptyDir": {k: v for k, v in source.items() if v}}
        mounts.append({"name": mount["volumeName"], "mountPath": mount["mountPath"]})
    for mount in config.get("pvcMount", []):
        claim = mount.get("constant") or mount["pvcNameParameter"]["runtimeValue"]["constant"]
        volumes[claim] = {"persistentVolumeClaim": {"claimName": claim}}
        at = {"name": claim, "mountPath": mount["mountPath"]}
        mounts.append(at | ({"subPath": mount["subPath"]} if mount.get("subPath") else {}))
    for mount in config.get("secretAsVolume", []):
        secret = _name(mount, "secret")
        volumes[secret] = {"secret": {"secretName": secret}}
        mounts.append({"name": secret, "mountPath": mount["mountPath"]})
    for mount in config.get("configMapAsVolume", []):
        name = _name(mount, "configMap")
        volumes[name] = {"configMap": {"name": name}}
        mounts.append({"name": name, "mountPath": mount["mountPath"]})
    return [{"name": name, **source} for name, source in volumes.items()], mounts


class Pods:
    """Steps as pods of a cluster."""

    def __init__(self, core: Any, namespace: str) -> None:
        self._core, self._namespace = core, namespace
        self.service_account, self.run_id = "", ""

    def of_run(self, run_id: str, service_account: str) -> Pods:
        pods = Pods(self._core, self._namespace)
        pods.run_id, pods.service_account = run_id, service_account
        return pods

    def run(self, step: Step, stop: threading.Event) -> End:
        from kubernetes import client

        pod = pod_of(step, run_id=self.run_id, service_account=self.service_account)
        name = pod["metadata"]["name"]
        self._core.create_namespaced_pod(self._namespace, pod)
        while True:
            if stop.is_set():
                self._core.delete_namespaced_pod(name, self._namespace)
                return End(143, why="cancelled")
            try:
                found = self._core.read_namespaced_pod(name, self._namespace)
            except client.ApiException as error:
                if error.status != 404:
                    raise
                return End(1, why="pod deleted", lost=True)
            if found.metadata.deletion_timestamp:
                return End(1, why="pod deleted", lost=True)
            if found.status.phase in ("Succeeded", "Failed"):
                return self._end(name, found)
            time.sleep(POLL_SECONDS * 2)

    def _end(self, name: str, found: Any) -> End:
        code, why = 1, found.status.reason or ""
        for status in found.status.container_statuses or []:
            if ended := status.state.terminated:
                code, why = ended.exit_code, why or f"{ended.reason} (exit code {ended.exit_code})"
        if found.status.phase == "Succeeded":
            code = 0
        log = read_log(self._core, self._namespace, name)
        outputs, artifacts = read_outputs(log)
        return End(code, outputs, artifacts, why=why if code else "")


def read_outputs(log: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The outputs that a wrapped command has printed: values, and the files of artifacts."""
    _, mark, printed = log.rpartition(f"\n{MARK}\n")
    files = {}
    for line in printed.splitlines() if mark else []:
        name, _, content = line.partition(" ")
        files[name] = base64.b64decode(content).decode()
    return json.loads(files.pop("outputs.json", "{}")), files

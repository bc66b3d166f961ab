"""The project's images as pods under the restricted profile."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
import restricted
from kubernetes.client import ApiClient

ROOT = Path(__file__).parents[2]
PROBE = """
import json, os, pathlib, shutil
def can_write(directory):
    try:
        pathlib.Path(directory, "probe").write_text("x")
    except OSError:
        return False
    return True
lines = open("/proc/self/status").read().splitlines()
status = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
directories = ("/", "/etc", "/opt/project", "/tmp", "/var/lib/caravan")
build_tools = ("cc", "gcc", "g++", "make", "ld", "pip", "git")
print(json.dumps({
    "user": os.getuid(),
    "capabilities": int(status["CapEff"], 16),
    "no_new_privileges": status["NoNewPrivs"],
    "seccomp": status["Seccomp"],
    "writable": [d for d in directories if can_write(d)],
    "token": os.path.exists("/var/run/secrets/kubernetes.io/serviceaccount/token"),
    "build_tools": [t for t in build_tools if shutil.which(t)],
}))
"""


LEFT = """
import glob, json, os, sys
mounts = ["/etc/pip.conf", "/run/secrets/ca.crt", "/dev/pip", "/opt/pip", "/src"]
written = glob.glob("/opt/*/pip.conf") + glob.glob("/usr/local/share/ca-certificates/*")
found = [path for path in mounts + written if os.path.exists(path)]
files = ["/proc/self/environ", "/opt/caravan/pyvenv.cfg"]
files += glob.glob("/etc/**", recursive=True) + glob.glob("/opt/**/direct_url.json", recursive=True)
for path in files:
    if os.path.isfile(path) and os.access(path, os.R_OK):
        text = open(path, errors="replace").read()
        found += [f"{word} in {path}" for word in sys.argv[1:] if word in text]
print(json.dumps(found))
"""


def pip_settings() -> list[str]:
    """Indexes and directories of wheels of this machine, where the images were built."""
    told = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True
    ).stdout
    lines = [line for line in told.splitlines() if re.search(r"(index-url|find-links)=", line)]
    return sorted({word for line in lines for word in re.findall(r"[a-z]*:?//?[^\s'\\]+", line)})


@pytest.mark.parametrize("image", ["stage-cpu", "dashboard"])
def test_an_image_has_nothing_of_the_machine_that_built_it(cluster, namespace, image):
    command = ["python3", "-c", LEFT, *pip_settings()]
    pod = restricted.pod("probe", cluster.image(image), command)

    assert json.loads(cluster.run(namespace, pod)) == []


@pytest.mark.parametrize("image", ["stage-cpu", "dashboard"])
def test_an_image_says_what_it_is(cluster, image):
    if shutil.which("podman") is None:
        pytest.skip("podman, which tells labels, is not here")
    told = subprocess.run(
        ["podman", "image", "inspect", "--format", "{{json .Labels}}", cluster.image(image)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if told.returncode:
        pytest.skip(f"podman has not built the image: {told.stderr.strip()}")

    prefix = "org.opencontainers.image."
    labels = {name.removeprefix(prefix): value for name, value in json.loads(told.stdout).items()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert labels["title"].startswith("Caravan ")
    assert labels["version"] == project["version"]
    assert re.fullmatch(r"[0-9a-f]{40}(-dirty)?", labels["revision"])
    assert labels["licenses"] == "Apache-2.0"


@pytest.mark.parametrize("image", ["stage-cpu", "dashboard"])
def test_a_pod_has_no_rights_that_it_does_not_need(cluster, namespace, image):
    pod = restricted.pod("probe", cluster.image(image), ["python3", "-c", PROBE])

    found = json.loads(cluster.run(namespace, pod))

    assert found == {
        "user": 10001,
        "capabilities": 0,
        "no_new_privileges": "1",
        "seccomp": "2",  # a filter
        "writable": ["/tmp", "/var/lib/caravan"],
        "token": False,
        "build_tools": [],
    }
    assert restricted.violations(cluster.core.read_namespaced_pod("probe", namespace)) == []


def test_the_check_of_the_restricted_profile_finds_what_a_pod_lacks():
    pod = restricted.pod("lax", "image", ["true"])
    del pod["spec"]["securityContext"], pod["spec"]["containers"][0]["securityContext"]
    token = {"name": "token", "mountPath": restricted.TOKEN}
    pod["spec"]["containers"][0]["volumeMounts"].append(token)
    read = ApiClient().deserialize(SimpleNamespace(data=json.dumps(pod)), "V1Pod")

    assert {v.removeprefix("main: ") for v in restricted.violations(read)} == {
        "mounts the service account's token", "may escalate its privileges",
        "may run as root", "has no seccomp profile", "keeps capabilities",
        "can write its root file system",
    }  # fmt: skip


def test_the_dashboard_answers_its_health_endpoint(cluster, namespace, stage_environment):
    pod = restricted.pod(
        "dashboard", cluster.image("dashboard"), ["caravan", "dashboard"],
        environment_secret=stage_environment,
    )  # fmt: skip
    health = "import urllib.request as u; u.urlopen('http://127.0.0.1:8501/_stcore/health')"
    pod["spec"]["containers"][0]["readinessProbe"] = {
        "exec": {"command": ["python3", "-c", health]}, "timeoutSeconds": 10,
    }  # fmt: skip
    name = cluster.start(namespace, pod)
    cluster.wait_until_ready(namespace, name)

    with cluster.forward(namespace, f"pod/{name}", 8501) as port:
        answer = urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=30)
        assert answer.read() == b"ok"
    assert restricted.violations(cluster.core.read_namespaced_pod(name, namespace)) == []

"""What the doctor says of things that are there, and of things that are broken."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest
from kubernetes.config import kube_config

from caravan.errors import CaravanError
from caravan.registry import Registry
from caravan.settings import Settings
from caravan_pipelines.doctor import Check, Outcome, all_checks, examine
from caravan_pipelines.doctor.images import split


def findings(settings: Settings) -> dict[str, tuple[Outcome, str]]:
    return {f.name: (f.state, f.says) for f in examine(all_checks(settings))}


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch, tmp_path):
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))


def test_a_laptop_is_well_and_the_rest_is_left_out(caravan):
    told = {row["name"]: row for row in json.loads(caravan("doctor", "--json"))}
    for name in ("work directory", "registry", "store"):
        assert told[name]["state"] == "ok"
    for name in ("kubeflow pipelines", "kubernetes", "images", "identity provider"):
        assert told[name]["state"] == "skipped"
    assert "deleted" in told["store"]["says"]
    assert "schema" in told["registry"]["says"]


def test_a_postgres_and_an_s3_that_are_well(postgres_url, s3_settings):
    values = {n: getattr(s3_settings, n) for n in type(s3_settings).model_fields}
    found = findings(Settings(**values | {"registry_url": postgres_url}))
    assert found["registry"][0] is Outcome.OK
    assert found["store"] == (Outcome.OK, f"{s3_settings.store_url}: written, read, deleted")


def test_each_broken_thing_is_told_with_the_way_out(caravan, tmp_path, empty_postgres_url):
    (tmp_path / "file").write_text("")
    broken_store = str(tmp_path / "file" / "store")
    said = caravan(
        "doctor", "--json", code=1, registry_url=empty_postgres_url, store_url=broken_store,
        kfp_url="http://127.0.0.1:1",
    )  # fmt: skip
    told = {row["name"]: row for row in json.loads(said)}
    broken = {name for name, row in told.items() if row["state"] == "broken"}
    assert {"registry", "store", "kubeflow pipelines"} == broken
    assert "caravan registry upgrade" in told["registry"]["says"]
    assert told["registry"]["says"].startswith("postgresql://")  # after the name of the check
    assert "CARAVAN_KFP_URL" in told["kubeflow pipelines"]["says"]
    assert "CARAVAN_STORE_URL" in told["store"]["says"]


def test_a_registry_that_cannot_be_written_is_broken(settings, monkeypatch):
    def refused(*_):
        raise CaravanError("attempt to write a readonly database")

    with Registry(settings.resolved_registry_url):
        pass
    monkeypatch.setattr(Registry, "heartbeat_run", refused)  # root may write read-only files
    assert findings(settings)["registry"][0] is Outcome.BROKEN


class KubernetesApi(BaseHTTPRequestHandler):
    """Allows all but `denied`, and knows the training runtime `caravan-torch` in `research`."""

    denied: tuple[str, str] = ("", "")
    items: ClassVar[dict[str, list[dict[str, object]]]] = {
        "/apis/trainer.kubeflow.org/v1alpha1/namespaces/research/trainingruntimes": [
            {"metadata": {"name": "caravan-torch"}}
        ]
    }
    """By path; elsewhere there are none."""

    def do_POST(self):
        review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked = review["spec"]["resourceAttributes"]
        allowed = (asked["verb"], asked["resource"]) != self.denied
        self.answer(review | {"status": {"allowed": allowed}})

    def do_GET(self):
        self.answer({"items": self.items.get(self.path, [])})

    def answer(self, document):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(document).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def kubernetes_api(monkeypatch, tmp_path):
    """An API server, and the kubeconfig that names it; gives the handler's class."""
    handler = type("Api", (KubernetesApi,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    named = {
        "clusters": [
            {"name": "c", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}
        ],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "c",
    }
    (tmp_path / "kubeconfig").write_text(json.dumps(named))
    # The client reads KUBECONFIG when it is imported.
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))
    yield handler
    server.shutdown()


def test_who_removes_training_jobs_is_asked_whether_they_may(kubernetes_api, settings):
    def permissions(profile: dict[str, object]) -> tuple[Outcome, str]:
        given = {"cluster_profile": json.dumps({"namespace": "research"} | profile)}
        return findings(settings.model_copy(update=given))["kubernetes permissions"]

    trains = {"trainer": {"token_secret": "token"}}
    assert permissions(trains) == (Outcome.OK, "all 5 in namespace research")
    kubernetes_api.denied = ("delete", "trainjobs")
    state, said = permissions(trains)
    assert state is Outcome.BROKEN
    assert "may not: delete trainjobs (to remove jobs of a stopped run)" in said
    assert permissions({}) == (Outcome.OK, "all 3 in namespace research")


def test_the_runtime_of_training_jobs_is_looked_for_in_the_namespace(kubernetes_api, settings):
    def jobs(namespace: str) -> tuple[Outcome, str]:
        given = {"cluster_profile": json.dumps({"namespace": namespace})}
        return findings(settings.model_copy(update=given))["training jobs"]

    assert jobs("research") == (Outcome.OK, "Kubeflow Trainer, runtime caravan-torch")
    state, said = jobs("elsewhere")
    assert state is Outcome.BROKEN
    assert "namespace elsewhere has no TrainingRuntime 'caravan-torch'" in said


def node(name: str, labels: dict[str, str], **allocatable: str) -> dict[str, object]:
    resources = {"cpu": "64"} | {f"nvidia.com/{kind}": n for kind, n in allocatable.items()}
    return {"metadata": {"name": name, "labels": labels}, "status": {"allocatable": resources}}


def pod(node: str, gpus: int, phase: str = "Running") -> dict[str, object]:
    limits = {"memory": "1Gi"} | ({"nvidia.com/gpu": str(gpus)} if gpus else {})
    containers = [{"name": "main", "resources": {"limits": limits}}, {"name": "beside"}]
    return {"metadata": {"name": "p"}, "spec": {"nodeName": node, "containers": containers},
            "status": {"phase": phase}}  # fmt: skip


def test_gpus_of_the_nodes_are_counted_by_type(kubernetes_api, settings):
    assert findings(settings)["gpus"][1] == "none: no node offers a GPU; stages run on CPUs"

    nodes = [
        node("a", {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"}, gpu="8"),
        node("b", {}, gpu="2"),
        node("c", {"nvidia.com/gpu.product": "Tesla-T4"}, gpu="0"),
    ]
    pods = [pod("a", 3), pod("a", 0), pod("a", 4, "Succeeded"), pod("b", 1, "Pending")]
    kubernetes_api.items = {"/api/v1/nodes": nodes, "/api/v1/pods": pods}

    assert findings(settings)["gpus"] == (
        Outcome.OK, "5 of 8 NVIDIA-H100-80GB-HBM3 free, 1 of 2 nvidia.com/gpu free",
    )  # fmt: skip


def test_checks_do_not_end_with_the_first_that_fails():
    def fail() -> str:
        raise RuntimeError("odd")

    found = list(examine([Check("a", fail), Check("b", lambda: "fine")]))
    assert [f.state for f in found] == [Outcome.BROKEN, Outcome.OK]
    assert "RuntimeError: odd" in found[0].says


@pytest.fixture
def provider(monkeypatch):
    """A real OpenID Connect provider in this process, and the settings that name it."""
    from oidc_provider_mock import run_server_in_thread

    with run_server_in_thread() as server:
        issuer = f"http://localhost:{server.server_port}"
        values = {
            "ISSUER": issuer,
            "CLIENT_ID": "caravan",
            "CLIENT_SECRET": "s",
            "COOKIE_SECRET": "c" * 32,
            "REDIRECT_URI": "http://localhost:8501/oauth2callback",
            "VIEWER_GROUPS": '["*"]',
        }
        for name, value in values.items():
            monkeypatch.setenv(f"CARAVAN_OIDC_{name}", value)
        yield issuer


@pytest.fixture
def elsewhere():
    """Where a discovery document of another issuer lies."""
    names = ("issuer", "authorization_endpoint", "token_endpoint", "jwks_uri")
    document = json.dumps(dict.fromkeys(names, "https://other.example.com")).encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(document)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def test_an_identity_provider_is_asked_for_its_discovery_document(
    provider, elsewhere, settings, monkeypatch
):
    assert findings(settings)["identity provider"] == (Outcome.OK, provider)
    monkeypatch.setenv("CARAVAN_OIDC_ISSUER", elsewhere)
    state, said = findings(settings)["identity provider"]
    assert state is Outcome.BROKEN
    assert "every sign-in would be refused" in said
    monkeypatch.setenv("CARAVAN_OIDC_ISSUER", "http://127.0.0.1:1")
    state, said = findings(settings)["identity provider"]
    assert state is Outcome.BROKEN
    assert "CARAVAN_OIDC_ISSUER" in said


@pytest.mark.parametrize(
    ("image", "parts"),
    [
        ("caravan/stage-cpu:0.1.0", ("caravan/stage-cpu", "0.1.0")),
        ("localhost:5000/a", ("localhost:5000/a", "")),
        ("host:5000/a/b:1", ("host:5000/a/b", "1")),
        ("a@sha256:00", ("a", "sha256:00")),
    ],
)
def test_images_are_taken_apart(image, parts):
    assert split(image) == parts


@pytest.fixture
def image_registry():
    """Has the image `there:1` only."""

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200 if self.path == "/v2/there/manifests/1" else 404)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()


def test_images_are_broken_only_where_a_registry_says_so(image_registry, settings):
    def images(cpu: str) -> tuple[Outcome, str]:
        profile = {"images": {"cpu": cpu, "gpu": f"{image_registry}/there:1"}}
        given = {"cluster_profile": json.dumps(profile)}
        return findings(settings.model_copy(update=given))["images"]

    assert images(f"{image_registry}/there:1")[0] is Outcome.OK
    state, said = images(f"{image_registry}/missing:1")
    assert state is Outcome.BROKEN
    assert "its registry answers 404" in said
    # A pod may be shut out of what the nodes pull from.
    state, said = images("127.0.0.1:1/stage:1")
    assert state is Outcome.SKIPPED
    assert "stage:1 is in a registry that does not answer from here" in said
    state, said = images("localhost/caravan/stage-cpu:1")
    assert state is Outcome.SKIPPED
    assert "only the nodes know" in said
    assert f"{image_registry}/there:1 is in its registry" in said


def test_an_image_without_a_version_is_broken(settings, tmp_path):
    profile = Path(tmp_path / "profile.yaml")
    profile.write_text("images: {cpu: registry.example.com/stage:latest}\n")
    changed = settings.model_copy(update={"cluster_profile": str(profile)})
    state, said = findings(changed)["images"]
    assert state is Outcome.BROKEN
    assert "names no version" in said

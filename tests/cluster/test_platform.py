"""All of it on a cluster, as a team uses it: the chart is installed, somebody signs in at the
dashboard and launches the pocket recipe from its page, every stage is a pod, two of them are lost
on the way and the watcher submits the run again, one asks for a GPU; the results are the laptop's.

Stood in for: Kubeflow Pipelines' backend (`kfp_stand_in.py`), the ingress controller and the
identity provider (`edge.py`), the GPU (an extended resource). Client, compiled pipeline, API
server, scheduler, quotas, kubelet, pods, PostgreSQL, S3 and the browser are real.

The recipe is the shrunken one of the tests; with WHOLE_POCKET=1 it is the pocket recipe itself,
which takes half an hour.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import helm_python
import pytest
import restricted
from cluster_client import GPU, Cluster
from edge import Certificate, identity_provider, make_certificate, tls_edge
from kfp_stand_in import StandIn
from kfp_steps import Pods
from kubernetes import client
from oidc_provider_mock import User
from playwright.sync_api import Page, expect, sync_playwright
from trial import CHART, RELEASE, SECONDS, reach, settings_of, trial_values

from caravan.registry import Registry, RunRow, State
from caravan.settings import Settings
from caravan.store import open_store
from caravan_command import MINI, Caravan

HOST = "caravan.test"
WHOLE = bool(os.environ.get("WHOLE_POCKET"))
ON_GPU = "dpo"
LOST = ("sft", "rlvr")
"""Stages whose first pod is killed while it works."""
RUN_SECONDS = 1800
"""After each loss the watcher submits the whole pipeline again."""
PAGE_SECONDS = 120


@dataclass
class Platform:
    """The installed release, as its users and its administrator see it."""

    cluster: Cluster
    namespace: str
    registry: Registry
    settings: Settings
    pipelines: StandIn
    page: Page
    address: str = f"https://{HOST}"

    def run(self) -> RunRow:
        (run,) = self.registry.list_runs()
        return run

    def wait_for_run(self, condition: Callable[[RunRow], bool]) -> RunRow:
        deadline = time.monotonic() + RUN_SECONDS
        while not condition(run := self.run()):
            assert not run.state.finished, f"{run.state}: {run.error}"
            assert time.monotonic() < deadline, f"waited in vain for {run.id}"
            time.sleep(1)
        return run


@pytest.fixture
def platform(cluster, tmp_path) -> Iterator[Platform]:
    address = cluster.address_of_this_machine()
    certificate = make_certificate(tmp_path, HOST, address)
    users = [
        User(sub=name, claims={"email": f"{name}@example.com", "email_verified": True,
                               "groups": [group]})
        for name, group in (("ann", "ml"), ("vic", "staff"))
    ]  # fmt: skip
    with (
        cluster.new_namespace("caravan-platform", restricted=True) as namespace,
        identity_provider(address, certificate, users) as issuer,
        kubeflow(cluster, namespace, address) as pipelines,
    ):
        prepare(cluster, namespace, certificate)
        values = platform_values(cluster, issuer, pipelines.url)
        with helm_python.Config(kubeconfig_path=cluster.kubeconfig, namespace=namespace) as helm:
            helm.install(str(CHART), RELEASE, values, wait="watcher", timeout=SECONDS)
        with (
            reach(cluster, namespace, "dashboard", 8501) as dashboard,
            reach(cluster, namespace, "postgres", 5432) as postgres,
            reach(cluster, namespace, "s3", 8333) as s3,
            tls_edge(dashboard, certificate) as edge,
            Browser(edge) as page,
        ):
            settings = settings_of(cluster, namespace, postgres, s3, tmp_path)
            with Registry(settings.resolved_registry_url) as registry:
                yield Platform(cluster, namespace, registry, settings, pipelines, page)


def kubeflow(cluster: Cluster, namespace: str, address: str) -> Any:
    """Kubeflow Pipelines for the dashboard's service account, by the token it presents."""
    account = f"system:serviceaccount:{namespace}:{RELEASE}-dashboard"
    reviews = client.AuthenticationV1Api(cluster.api)

    def allows(token: str) -> bool:
        spec = client.V1TokenReviewSpec(token=token, audiences=["pipelines.kubeflow.org"])
        status = reviews.create_token_review(client.V1TokenReview(spec=spec)).status
        return bool(status.authenticated) and status.user.username == account

    pods = Pods(cluster.core, namespace)
    return StandIn(pods.of_run, allows=allows, host=address)


def prepare(cluster: Cluster, namespace: str, certificate: Certificate) -> None:
    """What the administrator makes before the chart is installed."""
    cluster.new_secret(namespace, "oidc", {"client-secret": "secret"})
    cluster.new_claim(namespace, "work", "4Gi")
    authorities = {"ca.crt": certificate.certificate.read_text()}
    cluster.core.create_namespaced_config_map(
        namespace,
        client.V1ConfigMap(metadata=client.V1ObjectMeta(name="authorities"), data=authorities),
    )
    cluster.core.create_namespaced_resource_quota(
        namespace,
        client.V1ResourceQuota(
            metadata=client.V1ObjectMeta(name="gpus"),
            spec=client.V1ResourceQuotaSpec(hard={f"requests.{GPU}": "1"}),
        ),
    )


def platform_values(cluster: Cluster, issuer: str, pipelines: str) -> dict[str, Any]:
    values = trial_values(cluster)
    values["images"]["stageGpu"]["name"] = "stage-cpu"  # the GPU is none
    for part in ("postgres", "s3", "dashboard", "metrics"):  # stages ask for all of two cores
        values.setdefault(part, {})["resources"] = {"requests": {"cpu": None}}
    values["dashboard"]["host"] = HOST
    return values | {
        "trust": {"existingConfigMap": "authorities"},
        "oidc": {
            "enabled": True, "issuer": issuer, "clientId": "caravan", "existingSecret": "oidc",
            "viewerGroups": ["staff"], "launcherGroups": ["ml"], "adminGroups": ["ml-admins"],
        },
        "networkPolicy": {
            "dashboardFrom": [{"ipBlock": {"cidr": "0.0.0.0/0"}}],
            "externalPorts": [443, urlsplit(issuer).port, urlsplit(pipelines).port],
        },
        "kubeflow": {
            "enabled": True, "endpoint": pipelines,
            "watch": {"resources": {"requests": {"cpu": None}}},
        },
        "stages": {"workClaim": "work", "kfpExecutorToken": False},
    }  # fmt: skip


class Browser:
    """A page of a real browser, for which the platform's host is the edge."""

    def __init__(self, edge: int) -> None:
        found = shutil.which("chromium") or shutil.which("chromium-browser")
        assert found, "no browser: apt-get install chromium"
        self._found, self._edge = found, edge

    def __enter__(self) -> Page:
        self._playwright = sync_playwright().start()
        self._browser = self._playwright.chromium.launch(
            executable_path=self._found,
            args=["--no-sandbox", f"--host-resolver-rules=MAP {HOST} 127.0.0.1:{self._edge}"],
        )
        page = self._page = self._browser.new_page(
            ignore_https_errors=True, viewport={"width": 1360, "height": 1000}
        )
        page.set_default_timeout(PAGE_SECONDS * 1000)
        expect.set_options(timeout=PAGE_SECONDS * 1000)
        return page

    def __exit__(self, failed: object, *_: object) -> None:
        if failed:
            print(f"the page at {self._page.url}:\n{self._page.inner_text('body')}")
        self._browser.close()
        self._playwright.stop()


# --- the test -----------------------------------------------------------------------------------


@pytest.fixture
def laptop(request, tmp_path_factory) -> Caravan:
    """A finished run of the recipe on this machine."""
    if not WHOLE:
        return request.getfixturevalue("undisturbed")
    caravan = Caravan(tmp_path_factory.mktemp("laptop"))
    caravan("run", "pocket")
    return caravan


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_team_installs_signs_in_launches_and_gets_what_the_laptop_gets(laptop, platform, gpus):
    page = platform.page
    page.goto(platform.address)
    sign_in(page, "vic")
    page.goto(f"{platform.address}/launch?recipe=pocket")
    expect(page.get_by_role("button", name="Launch")).to_be_disabled()  # only a viewer

    page.context.clear_cookies()
    page.goto(platform.address)
    sign_in(page, "ann")
    page.goto(f"{platform.address}/launch?recipe=Paste a recipe")
    editor = page.get_by_role("textbox", name="Recipe", exact=True)
    editor.fill(recipe())
    editor.press("Control+Enter")
    expect(page.get_by_text("The recipe is valid.")).to_be_visible()
    with Losses(platform) as losses:
        page.get_by_role("button", name="Launch").click()
        expect(page.get_by_role("button", name="Cancel")).to_be_visible()

        # a GPU that the recipe asks for and no node has; then one, and the quota is used up
        run = platform.wait_for_run(lambda run: f"Insufficient {GPU}" in (run.error or ""))
        assert (run.owner, run.backend) == ("ann@example.com", "kubeflow")
        gpus(1)
        platform.wait_for_run(lambda _: ON_GPU in platform_stages(platform))
        refuse_another_gpu(platform, losses)

        run = platform.wait_for_run(lambda run: run.state is State.SUCCEEDED)

    assert set(losses.killed) == set(LOST)
    submitted = [there.body["display_name"] for there in platform.pipelines.runs.values()]
    assert submitted == [run.id, f"{run.id}-again-1", f"{run.id}-again-2"]
    made = {stage.node: stage for stage in platform.registry.stage_runs(run.id)}
    assert {node: dict(stage.outputs) for node, stage in made.items()} == laptop.digests()
    store = open_store(platform.settings.resolved_store_url, platform.settings)
    for stage in made.values():
        assert stage.pod in losses.seen
        for digest in stage.outputs.values():
            store.verify(digest)
    assert len({pod.metadata.labels["caravan.dev/stage"] for pod in losses.seen.values()}) >= 10
    for pod in losses.seen.values():
        assert pod.spec.service_account_name == f"{RELEASE}-stage"
        # Kubeflow Pipelines cannot ask for a read-only root file system.
        assert restricted.violations(pod) == ["main: can write its root file system"]

    with Registry(Settings(home=laptop.home).resolved_registry_url) as registry:
        assert scores(platform.registry, run.id) == scores(registry, registry.list_runs()[0].id)
    page.reload()
    expect(page.locator('[data-testid="stMetric"]').filter(has_text="RLVR")).to_be_visible()
    page.get_by_role("link", name="All scores →").click()
    expect(page.get_by_role("cell", name=re.compile("constraints")).first).to_be_visible()


def sign_in(page: Page, name: str) -> None:
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(re.compile(r"/oauth2/authorize"))
    page.get_by_role("button", name=name).first.click()
    expect(page.get_by_text(f"{name}@example.com")).to_be_visible()


def recipe() -> str:
    if WHOLE:
        return f"extends: pocket.yaml\n{ON_GPU}: {{resources: {{gpus: 1}}}}\n"
    text = MINI.read_text().replace("../../pipelines/recipes/", "")
    return text.replace(f"{ON_GPU}: {{", f"{ON_GPU}: {{resources: {{gpus: 1}}, ")


def platform_stages(platform: Platform) -> set[str]:
    """Stages that have begun."""
    stages = platform.registry.stage_runs(platform.run().id)
    return {stage.node for stage in stages if stage.state is not State.PENDING}


def scores(registry: Registry, run_id: str) -> set[tuple[str, str, str, float]]:
    return {(s.node, s.task, s.metric, s.value) for s in registry.scores(run_id)}


def refuse_another_gpu(platform: Platform, losses: Losses) -> None:
    """A second pod like that of the stage on the GPU is over the namespace's quota."""
    (pod,) = [
        pod for pod in losses.seen.values() if pod.metadata.labels["caravan.dev/stage"] == ON_GPU
    ]
    assert pod.spec.containers[0].resources.limits[GPU] == "1"
    again = client.V1Pod(
        metadata=client.V1ObjectMeta(name="another"), spec=pod.spec, api_version="v1", kind="Pod"
    )
    with pytest.raises(client.ApiException, match=f"exceeded quota.*{GPU}"):
        platform.cluster.start(
            platform.namespace, platform.cluster.api.sanitize_for_serialization(again)
        )


class Losses:
    """Watches the pods of stages, and kills the first one of some."""

    def __init__(self, platform: Platform) -> None:
        self._platform, self._core = platform, platform.cluster.core
        self.seen: dict[str, client.V1Pod] = {}
        self.killed: dict[str, str] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Losses:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        namespace = self._platform.namespace
        while not self._stop.wait(0.3):
            pods = self._core.list_namespaced_pod(namespace, label_selector="caravan.dev/stage")
            for pod in pods.items:
                name, stage = pod.metadata.name, pod.metadata.labels["caravan.dev/stage"]
                self.seen[name] = pod
                if stage in LOST and stage not in self.killed and self._works(pod, stage):
                    self.killed[stage] = name
                    self._core.delete_namespaced_pod(name, namespace, grace_period_seconds=0)

    def _works(self, pod: client.V1Pod, stage: str) -> bool:
        return pod.status.phase == "Running" and stage in platform_stages(self._platform)

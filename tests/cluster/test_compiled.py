"""Recipes compiled for Kubeflow Pipelines: which pods they ask for."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path

import kubernetes_validate
import pytest
from kfp_recorder import Recorder, compiled, recorded
from kfp_steps import pod_of

from caravan.cluster.profile import ClusterProfile, load_profile
from caravan.errors import RecipeError, SettingsError
from caravan.recipe import Recipe
from caravan.recipe.io import load_recipe
from caravan.settings import Settings
from caravan_pipelines.graph import stage_graph
from caravan_pipelines.together import PREPARE, RATE
from parts import PARTS, part

ROOT = Path(__file__).resolve().parents[2]
RECIPES = {path.stem: path for path in sorted((ROOT / "pipelines" / "recipes").glob("*.yaml"))}
PROFILE = {
    "namespace": "research",
    "service_account": "stage",
    "images": {"cpu": "r/cpu:1", "gpu": "r/gpu:1", "pull_secrets": ["pull"]},
    "node_selector": {"pool": "ml"},
    "gpus": {
        "": {},
        "h100": {"node_selector": {"gpu": "h100"}, "tolerations": [{"key": "gpu", "value": "h100",
                 "operator": "Equal", "effect": "NoSchedule"}]},
    },
    "secrets": [{"name": "caravan", "env": {"registry-url": "CARAVAN_REGISTRY_URL"}}],
    "config_maps": [{"name": "caravan", "env": {"store-url": "CARAVAN_STORE_URL"}}],
    "environment": {"HF_HUB_OFFLINE": "1"},
    "trust": {"config_map": "company-ca"},
    "work": {"claim": "work"},
    "model_cache": {"claim": "models", "sub_path": "hub"},
    "shared_memory_gib": 16,
    "queue": "research",
    "priority": "high",
    "retries": {"count": 1, "interruptions": 2},
    "trainer": {"token_secret": "trainer"},
}  # fmt: skip


@pytest.fixture(scope="module", params=RECIPES, ids=list(RECIPES))
def shipped(request, tmp_path_factory) -> tuple[Recipe, Recorder]:
    recipe = load_recipe(RECIPES[request.param])
    profile = ClusterProfile.model_validate(PROFILE)
    return recipe, recorded(recipe, profile, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def big(tmp_path_factory) -> Recorder:
    profile = ClusterProfile.model_validate(PROFILE)
    return recorded(load_recipe(RECIPES["tulu3-8b"]), profile, tmp_path_factory.mktemp("big"))


def test_three_recipes_are_shipped():
    assert set(RECIPES) == {"pocket", "tulu3-8b", "tulu3-70b"}


# --- what pods a recipe asks for ----------------------------------------------------------------


def test_the_pods_of_every_shipped_recipe_are_valid_and_restricted(shipped):
    _, recorder = shipped
    pods = [pod_of(step, run_id="r1", service_account="stage") for step in recorder.steps]

    assert len({pod["metadata"]["name"] for pod in pods}) == len(pods) >= 10
    for pod in pods:
        kubernetes_validate.validate(pod, "1.37", strict=True)
        (container,) = pod["spec"]["containers"]
        security = container["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] == security["runAsGroup"] == 10001
        assert security["allowPrivilegeEscalation"] is False
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["spec"]["serviceAccountName"] == "stage"
        assert pod["spec"]["imagePullSecrets"] == [{"name": "pull"}]
        assert pod["metadata"]["labels"]["caravan.dev/run"] == "a-run"
        assert pod["metadata"]["labels"]["kueue.x-k8s.io/priority-class"] == "high"


def test_every_stage_of_a_recipe_runs_once(shipped):
    recipe, recorder = shipped
    names = [step.name for step in recorder.steps]
    in_loops = sum("for-loop" in name for name in names)
    fanned = [n for n in stage_graph(recipe) if n.stage in ("respond", "evaluate")]

    assert in_loops == len(fanned)
    assert len(set(names)) == len(names)


MODEL_INPUTS = {
    "sft": "model", "reference": "model", "dpo": "model", "reward-model": "model", "rlvr": "policy",
}  # fmt: skip


@pytest.mark.parametrize("name", PARTS)
def test_a_recipe_of_some_stages_runs_each_once_and_starts_from_its_base(name, tmp_path):
    sections, nodes = PARTS[name]
    recorder = recorded(part(sections), ClusterProfile(), tmp_path)

    def step(node: str) -> str:
        for pod, chain in (("prepare", PREPARE), ("rate", RATE if "judge" in nodes else ())):
            if node in chain:
                return pod
        return node if node in MODEL_INPUTS else node.partition("-")[0]

    expected = [name for name, _ in groupby(["base", *map(step, nodes)])]
    if "evaluate-dpo" in nodes or "evaluate-rlvr" in nodes:
        expected.insert(expected.index("evaluate"), "evaluate")  # of the base model
    assert [each.name.partition(".")[0] for each in recorder.steps] == expected
    for node in nodes:
        if node in MODEL_INPUTS:
            assert recorder.inputs(node)[MODEL_INPUTS[node]] == "base/Output"


def test_the_selected_policy_is_the_one_that_is_evaluated(big):
    assert big.inputs("select")["candidates"] == "rlvr/candidates"
    evaluations = [s for s in big.steps if s.name.partition(".")[0] == "evaluate"]
    assert {big.inputs(step.name)["rlvr"] for step in evaluations} == {"select/Output"}
    pod = pod_of(big.step("select"), run_id="r1", service_account="stage")
    limits = pod["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == "1"  # as of evaluate: rlvr itself has eight


def test_later_stages_start_from_the_policies_that_were_selected(tmp_path):
    select = "{every: 2, tasks: [math]}"
    chosen = [f"sft.select={select}", f"dpo.select={select}", "rlvr.reward_model_multiplier=1.0"]
    recorder = recorded(load_recipe(RECIPES["pocket"], chosen), ClusterProfile(), tmp_path)
    for selection, stage in (("select", "sft"), ("select-2", "dpo")):
        assert recorder.inputs(selection)["candidates"] == f"{stage}/candidates"
    for node in ("reference", "dpo", "reward-model"):
        assert recorder.inputs(node)["model"] == "select/Output"
    assert recorder.inputs("rlvr")["policy"] == "select-2/Output"

    def given(component, name):
        steps = [s.name for s in recorder.steps if s.name.partition(".")[0] == component]
        return {recorder.inputs(step)[name] for step in steps}

    assert given("respond", "sft") == given("evaluate", "sft") == {"select/Output"}
    assert given("evaluate", "dpo") == {"select-2/Output"}


def test_a_stage_gets_what_its_recipe_asks_for(big):
    pod = pod_of(big.step("dpo"), run_id="r1", service_account="stage")
    (container,) = pod["spec"]["containers"]
    mounts = {m["mountPath"]: m["name"] for m in container["volumeMounts"]}
    volumes = {v["name"]: v for v in pod["spec"]["volumes"]}

    assert container["image"] == "r/gpu:1"
    assert container["resources"]["limits"] == {
        "cpu": "96", "memory": "1024000Mi", "nvidia.com/gpu": "8",
    }  # fmt: skip
    assert pod["spec"]["nodeSelector"] == {"pool": "ml", "gpu": "h100"}
    assert {"key": "gpu", "value": "h100", "operator": "Equal", "effect": "NoSchedule"} in (
        pod["spec"]["tolerations"]
    )
    assert mounts == {
        "/work": "work", "/tmp": "temporary", "/cache": "models", "/dev/shm": "shared-memory",
        "/etc/caravan/trust": "company-ca",
    }  # fmt: skip
    assert volumes["company-ca"]["configMap"] == {"name": "company-ca"}
    plain = {e["name"]: e.get("value") for e in container["env"]}
    assert plain["SSL_CERT_FILE"] == plain["REQUESTS_CA_BUNDLE"] == "/etc/caravan/trust/ca.crt"
    assert volumes["shared-memory"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "16384Mi"}
    assert volumes["work"]["persistentVolumeClaim"] == {"claimName": "work"}
    assert pod["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "research"


def test_secrets_reach_a_stage_by_name_only(big):
    step = big.step("dpo")
    environment = {
        e["name"]: e.get("value", e.get("valueFrom"))
        for e in pod_of(step, run_id="r1", service_account="")["spec"]["containers"][0]["env"]
    }

    assert environment["CARAVAN_REGISTRY_URL"] == {
        "secretKeyRef": {"name": "caravan", "key": "registry-url"}
    }
    assert environment["CARAVAN_STORE_URL"] == {
        "configMapKeyRef": {"name": "caravan", "key": "store-url"}
    }
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert environment["CARAVAN_POD_NAME"] == {"fieldRef": {"fieldPath": "metadata.name"}}


def test_members_of_the_pool_get_their_own_kind_of_pod_and_are_judged_in_order(big):
    recipe = load_recipe(RECIPES["tulu3-8b"])
    gpus = {}
    for step in big.steps:
        if step.name.startswith("respond"):
            limits = pod_of(step, run_id="r", service_account="")["spec"]["containers"][0]
            member = json.loads(step.command[step.command.index("--executor_input") + 1])
            name = member["inputs"]["parameterValues"]["member"]
            gpus[name] = int(limits["resources"]["limits"].get("nvidia.com/gpu", 0))

    assert recipe.respond is not None
    wanted = {m.name: (m.resources or recipe.respond.resources).gpus for m in recipe.respond.pool}
    assert gpus == wanted
    assert set(wanted.values()) == {0, 2, 4}
    judged = big.inputs("judge")
    lists = [judged["completions"], judged["completions_2"], judged["completions_3"]]
    assert sum(map(len, lists)) == len(judged["members"]) == len(wanted)


def test_a_pool_of_too_many_kinds_of_pods_is_refused(tmp_path):
    recipe = load_recipe(RECIPES["pocket"])
    data = recipe.model_dump()
    data["respond"]["pool"] += ({"name": "base", "artifact": "base"},)
    for number, member in enumerate(data["respond"]["pool"]):
        member["resources"] = {"cpus": number + 1}
    with pytest.raises(RecipeError, match=r"respond\.pool asks for 5 kinds of pods"):
        compiled(Recipe.model_validate(data), ClusterProfile(), tmp_path)


def test_deadline_disk_and_queue_of_a_recipe(tmp_path):
    recipe = load_recipe(
        RECIPES["pocket"],
        ["sft.resources.deadline_hours=2.5", "sft.resources.disk_gib=20",
         "sft.resources.queue=fast", "sft.resources.shared_memory_gib=1"],
    )  # fmt: skip
    recorder = recorded(recipe, ClusterProfile(), tmp_path)
    pod = pod_of(recorder.step("sft"), run_id="r", service_account="")
    volumes = {v["name"]: v for v in pod["spec"]["volumes"]}

    assert pod["spec"]["activeDeadlineSeconds"] == 9000
    assert volumes["work"]["emptyDir"] == {"sizeLimit": "20480Mi"}
    assert volumes["shared-memory"]["emptyDir"]["sizeLimit"] == "1024Mi"
    assert pod["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "fast"


def test_a_stage_on_many_nodes_waits_in_a_small_pod_that_may_create_the_job(big):
    pod = pod_of(big.step("sft"), run_id="r", service_account="stage")
    (container,) = pod["spec"]["containers"]

    assert container["resources"]["limits"] == {"cpu": "1", "memory": "1024Mi"}
    assert "/var/run/secrets/caravan-trainer" in [m["mountPath"] for m in container["volumeMounts"]]
    others = [pod_of(s, run_id="r", service_account="") for s in big.steps if s.name != "sft"]
    assert "trainer" not in json.dumps([other["spec"]["volumes"] for other in others])


def test_the_deadline_of_a_stage_on_many_nodes_is_the_jobs(tmp_path):
    """Which may stand in a queue before."""
    recipe = load_recipe(
        RECIPES["pocket"], ["sft.resources.nodes=2", "sft.resources.deadline_hours=1"]
    )
    pod = pod_of(
        recorded(recipe, ClusterProfile(), tmp_path).step("sft"), run_id="r", service_account=""
    )
    assert "activeDeadlineSeconds" not in pod["spec"]


def test_short_stages_share_a_pod_only_if_one_suits_them_all(tmp_path):
    alike = recorded(load_recipe(RECIPES["pocket"]), ClusterProfile(), tmp_path)
    apart = recorded(
        load_recipe(RECIPES["pocket"], ["curate.resources.memory_gib=64"]),
        ClusterProfile(),
        tmp_path,
    )

    assert {"prepare", "rate"} <= {s.name for s in alike.steps}
    assert {"curate", "mix", "rate"} <= {s.name for s in apart.steps}
    assert len(apart.steps) == len(alike.steps) + 4


def test_a_fan_out_may_be_held_to_a_number_of_pods(tmp_path):
    recipe = load_recipe(RECIPES["pocket"])
    spec, _ = compiled(recipe, ClusterProfile(pool_parallelism=3), tmp_path)
    tasks = [t for c in spec["components"].values()
             for t in c.get("dag", {}).get("tasks", {}).values()]  # fmt: skip
    loops = [t for t in tasks if "parameterIterator" in t]

    assert [loop["iteratorPolicy"]["parallelismLimit"] for loop in loops] == [3, 3]


def test_an_unknown_type_of_gpu_is_named_before_anything_is_submitted(tmp_path):
    recipe = load_recipe(RECIPES["pocket"], ["sft.resources.gpus=1", "sft.resources.gpu_type=b200"])
    with pytest.raises(SettingsError, match=r"'b200'.*add it under `gpus`"):
        compiled(recipe, ClusterProfile(), tmp_path)


def test_a_misspelt_profile_is_refused(tmp_path):
    path = tmp_path / "profile.yaml"
    path.write_text("images: {gpus: x}\n")
    with pytest.raises(SettingsError, match=r"profile\.yaml: images\.gpus"):
        load_profile(Settings(cluster_profile=str(path)))

"""What real pods end with reaches the registry in words; a run on pods is stopped, looked at and
continued."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import restricted

from caravan.cluster.api import as_dict
from caravan.cluster.ends import was_interrupted, why_ended, why_waiting
from caravan.cluster.logs import pod_logs
from caravan.recipe.io import load_recipe
from caravan.registry import Registry, RunRow, State
from caravan.settings import Settings
from caravan_command import MINI
from caravan_pipelines.launch import kfp_state, kubeflow

RUN_SECONDS = 300
SMALL = [
    "sample_prompts=null", "respond=null", "judge=null", "pair=null", "dpo=null",
    "reward_model=null", "rlvr=null",
]  # fmt: skip
HUNGRY = "held = []\nwhile True: held.append(bytearray(8_000_000))"
GREEDY = "open('/tmp/scratch', 'wb').write(bytes(8_000_000)); import time; time.sleep(300)"


def python(code: str, cluster: Any, name: str, **more: Any) -> dict[str, Any]:
    return restricted.pod(name, cluster.image("stage-cpu"), ["python3", "-c", code], **more)


def wait_for_words(cluster: Any, namespace: str, pod: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """What keeps a pod from starting or has ended it, and the pod as the API writes it."""
    name = cluster.start(namespace, pod)

    def words() -> tuple[str, dict[str, Any]] | None:
        found = as_dict(cluster.api, cluster.pod(namespace, name))
        why = why_ended(found) or why_waiting(found)
        return (why, found) if why else None

    return cluster.wait(words, lambda: cluster.describe(namespace, name))


def test_why_real_pods_end_or_wait(cluster, namespace):
    def why(pod: dict[str, Any]) -> tuple[str, bool]:
        words, found = wait_for_words(cluster, namespace, pod)
        return words, was_interrupted(found)

    hungry = python(HUNGRY, cluster, "hungry", resources={"limits": {"memory": "96Mi"}})
    assert why(hungry) == (
        "killed for memory: it needed more than 96Mi; raise resources.memory_gib", False
    )  # fmt: skip

    slow = python("import time; time.sleep(300)", cluster, "slow")
    slow["spec"]["activeDeadlineSeconds"] = 3
    assert why(slow)[0].startswith("ran longer than its deadline of 3 s; raise")

    asked = python("raise SystemExit(75)", cluster, "asked")
    words, interrupted = why(asked)
    assert words.startswith("stopped: the run was cancelled, or its node drained")
    assert interrupted

    greedy = python(GREEDY, cluster, "greedy")
    for volume in greedy["spec"]["volumes"]:
        volume["emptyDir"] = {"sizeLimit": "1Mi"}
    words, interrupted = why(greedy)
    assert words.startswith("evicted from its node: Usage of EmptyDir volume")
    assert interrupted

    nowhere = python("", cluster, "nowhere")
    nowhere["spec"]["nodeSelector"] = {"gpu": "none-has-this"}
    assert why(nowhere)[0].startswith("no node takes it: 0/")

    absent = restricted.pod("absent", "localhost/caravan/absent:0", ["true"])
    assert why(absent)[0].startswith("image localhost/caravan/absent:0 cannot be pulled (ErrImage")


@pytest.mark.timeout(900)
def test_a_run_on_pods_is_stopped_looked_at_and_continued(
    cluster, namespace, pipelines, stage_environment, services, database, cluster_settings,
    monkeypatch,
):  # fmt: skip
    def settings(image: str) -> Settings:
        variables = services.pod_environment(database)
        profile = {
            "namespace": namespace,
            "service_account": "stage",
            "images": {"cpu": cluster.image(image)},
            "secrets": [{"name": stage_environment, "env": {name: name for name in variables}}],
            "retries": {"count": 0},
        }
        more = {"kfp_url": pipelines.url, "owner": "ann", "cluster_profile": json.dumps(profile)}
        return cluster_settings.model_copy(update=more)

    monkeypatch.setenv("KUBECONFIG", cluster.kubeconfig)
    absent, present = settings("absent"), settings("stage-cpu")
    endless = ["sft.num_train_epochs=1000", "sft.resources.deadline_hours=0.0005"]
    recipe = load_recipe(MINI, [*SMALL, *endless])
    (run_id,) = kubeflow.launch(recipe, absent, recipe_dir=MINI.parent).run_ids
    with Registry(absent.resolved_registry_url) as registry:

        def wait_for(wanted: State, words: str, using: Settings) -> RunRow:
            deadline = time.monotonic() + RUN_SECONDS
            while True:
                kfp_state.sync(registry.get_run(run_id), registry, using)
                run = registry.get_run(run_id)
                if run.state is wanted and words in (run.error or ""):
                    return run
                assert time.monotonic() < deadline, f"{run.state}: {run.error}"
                assert wanted is State.RUNNING or not run.state.finished, f"{run.error}"
                time.sleep(1)

        run = wait_for(State.RUNNING, "cannot be pulled", absent)
        kubeflow.cancel(run, absent)
        assert registry.get_run(run_id).state is State.CANCELLED
        cluster.wait(lambda: not cluster.core.list_namespaced_pod(namespace).items)

        kubeflow.resume(registry.get_run(run_id), present)
        run = wait_for(State.FAILED, "sft: ran longer than its deadline", present)
        assert "raise resources.deadline_hours" in run.error
        states = {stage.node: stage.state for stage in registry.stage_runs(run_id)}
        assert (states["base"], states["mix"]) == (State.SUCCEEDED, State.SUCCEEDED)
        assert states["sft"] in (State.FAILED, State.CANCELLED)  # it may have begun once more
        logs = dict(pod_logs(run_id, namespace, run.backend_run_id))
        (of_base,) = (lines for title, lines in logs.items() if title.startswith("base "))
        assert any("base" in line for line in of_base)

"""A model of the store behind vLLM on the cluster, asked by the stages of a run.

The server is vLLM's build for CPUs (`images/vllm.Containerfile`), its GPU an extended resource of
the node.
"""

from __future__ import annotations

import json
import time
import urllib.error

import pytest
import restricted
from served_model import models_at, save_model_that_says

from caravan.data.io import read_rows
from caravan.data.records import Completion, Conversation, RatedCompletion
from caravan.recipe.io import load_recipe
from caravan.registry import Registry, State
from caravan.store import open_store
from caravan_command import MINI, command_here
from caravan_pipelines.launch import kfp_state, kubeflow

KEY = "a key of this test"
RATINGS = '[{"response": 1, "rating": 5}, {"response": 2, "rating": 2}]'
"""What the served model says to everything: as a judge, that the first of two responses is good."""
STAGES = (
    "curate", "synthesize", "decontaminate", "mix", "sft", "sample_prompts", "respond", "judge",
    "pair", "evaluate", "report", "base_model",
)  # fmt: skip
START_SECONDS = 420
RUN_SECONDS = 900


def recipe_that_asks(base_url: str):
    """Teacher, member of the pool, judge of preferences and judge of the evaluation: one server."""
    judge = "{kind: llm, engine: served, sampling: {temperature: 0.0, max_completion_length: 16}}"
    chat = "{name: chat, task: pocket-chat, limit: 10, sampling: {max_completion_length: 8}}"
    return load_recipe(
        MINI,
        [
            f"engines.served={{kind: openai, base_url: '{base_url}', model: served, "
            "api_key_env: SERVED_API_KEY}",
            "synthesize.tasks=[{name: persona-notes, kind: instruction_following, skill: chat, "
            "count: 1, prompt_engine: served, response_engine: served}]",
            "mix.dataset_mixer_list=[{source: notes, count: 60}, {source: persona-notes}]",
            "sample_prompts.components=[{name: new, drawn_from: unused_in_sft, count: 12}]",
            "respond.pool=[{name: terse, engine: terse}, {name: served, engine: served}]",
            f"judge.judge={judge}", f"evaluate.judge={judge}", f"evaluate.tasks=[{chat}]",
            "dpo=null", "reward_model=null", "rlvr=null",
            *(f"{stage}.resources.cpus=1" for stage in STAGES),
        ],
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_stages_ask_a_served_model_by_name(
    cluster, namespace, pipelines, gpus, stage_environment, services, database, cluster_settings,
    monkeypatch, capsys, tmp_path,
):  # fmt: skip
    save_model_that_says(RATINGS, tmp_path / "model")
    store = open_store(cluster_settings.resolved_store_url, cluster_settings)
    model = store.put(tmp_path / "model", "model")
    with Registry(cluster_settings.resolved_registry_url) as registry:
        registry.add_artifact(model, store.uri(model.digest))
    secret = cluster.new_secret(namespace, "served-key", {"api-key": KEY})
    profile = {
        "namespace": namespace,
        "service_account": "stage",
        "images": {"cpu": cluster.image("stage-cpu"), "gpu": cluster.image("vllm")},
        "secrets": [
            {"name": stage_environment, "env": {n: n for n in services.pod_environment(database)}},
            {"name": secret, "env": {"api-key": "SERVED_API_KEY"}},
        ],
    }
    more = {"kfp_url": pipelines.url, "owner": "ann", "cluster_profile": json.dumps(profile)}
    settings = cluster_settings.model_copy(update=more)
    monkeypatch.setenv("KUBECONFIG", cluster.kubeconfig)
    caravan = command_here(settings, monkeypatch, capsys)
    gpus(1)

    told = caravan(
        "serve", model.digest, "--name", "served", "--cpus", "1", "--memory", "4",
        "--api-key-secret", secret, "--", "--enforce-eager", "--dtype=float32",
    )  # fmt: skip
    base_url = f"http://served.{namespace}:8000/v1"
    assert base_url in told
    (pod,) = cluster.wait(lambda: pods_of(cluster, namespace, "served"))
    cluster.wait_until_ready(namespace, pod, START_SECONDS)
    assert restricted.violations(cluster.core.read_namespaced_pod(pod, namespace)) == []
    with cluster.reach(namespace, pod, 8000) as address:
        assert models_at(address, KEY) == ["served"]
        with pytest.raises(urllib.error.HTTPError, match="401"):
            models_at(address, "another key")

    run_id = kubeflow.launch(recipe_that_asks(base_url), settings, recipe_dir=MINI.parent).run_id
    with Registry(settings.resolved_registry_url) as registry:
        deadline = time.monotonic() + RUN_SECONDS
        while not (run := registry.get_run(run_id)).state.finished:
            assert time.monotonic() < deadline, f"{run.state}: {run.error}"
            time.sleep(1)
            kfp_state.sync(run, registry, settings)
        assert run.state is State.SUCCEEDED, run.error
        stages = registry.stage_runs(run_id)
        made = {stage.node: stage.outputs for stage in stages}
        measured = {stage.node: stage.metrics for stage in stages}

    def rows(node: str, output: str, record):
        return list(read_rows(store.fetch(made[node][output]), record))

    (synthesised,) = rows("synthesize", "dataset", Conversation)
    assert [message.content for message in synthesised.messages] == [RATINGS, RATINGS]
    replies = rows("respond-served", "completions", Completion)
    assert [reply.text for reply in replies] == [RATINGS] * 12
    ratings = rows("judge", "ratings", RatedCompletion)
    assert len(ratings) == 24
    assert {tuple(sorted(row.ratings.values())) for row in ratings} <= {
        (2, 2, 2, 2), (2, 2, 2, 5), (2, 2, 5, 5), (2, 5, 5, 5), (5, 5, 5, 5)
    }  # fmt: skip

    for node in ("evaluate-base", "evaluate-sft"):  # the server rates two responses, and has one
        assert measured[node]["chat/undecided"] == 10

    caravan("serve", "--stop", "served")
    cluster.wait(lambda: not pods_of(cluster, namespace, "served"), lambda: "the server's end")
    assert not cluster.core.list_namespaced_service(namespace).items


def pods_of(cluster, namespace: str, server: str) -> list[str]:
    selector = f"caravan.dev/model={server}"
    found = cluster.core.list_namespaced_pod(namespace, label_selector=selector).items
    return [pod.metadata.name for pod in found]

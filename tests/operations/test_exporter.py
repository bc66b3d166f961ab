"""Prometheus metrics over HTTP, read by Prometheus' own parser."""

import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from caravan.operations import exporter
from caravan.registry import Registry, State


@pytest.fixture
def scrape(settings, monkeypatch):
    """Starts the exporter on a free port; gives what a scrape finds, by sample and labels."""
    monkeypatch.setattr(exporter, "SCRAPE_SECONDS", 0.0)
    servers = []

    def start(url=settings.resolved_registry_url):
        server, _ = exporter.serve("127.0.0.1", 0, lambda: Registry(url), {"cpu": 0.5})
        servers.append(server)

        def read():
            address = f"http://127.0.0.1:{server.server_port}/metrics"
            with urllib.request.urlopen(address, timeout=60) as answer:
                text = answer.read().decode()
            return {
                (sample.name, *sorted(sample.labels.values())): sample.value
                for family in text_string_to_metric_families(text)
                for sample in family.samples
            }

        return read

    yield start
    for server in servers:
        server.shutdown()


def test_the_numbers_are_those_of_the_registry(scrape, new_run, stage, registry):
    done = new_run("project:atlas", state=State.RUNNING)
    stage(done, "sft", 3600, metrics={"num_tokens": 5000})
    stage(done, "dpo", 1800, state=State.FAILED)
    registry.update_run_state(done, State.FAILED)
    new_run()
    found = scrape()()

    assert found["caravan_registry_up",] == 1
    assert found["caravan_runs", "atlas", "failed"] == 1
    assert found["caravan_runs", "", "pending"] == 1
    assert found["caravan_stage_runs", "sft", "succeeded"] == 1
    assert found["caravan_stage_runs", "dpo", "failed"] == 1
    assert found["caravan_stage_duration_seconds_count", "sft"] == 1
    assert found["caravan_stage_duration_seconds_sum", "sft"] == pytest.approx(3600, rel=1e-2)
    assert found["caravan_trained_tokens_total", "sft"] == 5000
    assert found["caravan_core_hours_total", "atlas"] == pytest.approx(3.0, rel=1e-2)
    assert found["caravan_cost_total", "atlas"] == pytest.approx(1.5, rel=1e-2)
    assert found["caravan_queue_seconds_count",] == 1


def test_a_run_that_goes_on_is_counted_anew(scrape, new_run, stage, registry):
    run_id = new_run(state=State.CANCELLED)
    read = scrape()
    assert read()["caravan_runs", "", "cancelled"] == 1
    registry.update_run_state(run_id, State.RUNNING)
    stage(run_id, "sft", 60)
    registry.update_run_state(run_id, State.SUCCEEDED)
    found = read()
    assert found["caravan_runs", "", "succeeded"] == 1
    assert ("caravan_runs", "", "cancelled") not in found
    assert found["caravan_stage_runs", "sft", "succeeded"] == 1


def test_a_registry_that_is_away_is_told_and_comes_back(scrape, stoppable_postgres):
    read = scrape(stoppable_postgres.url)
    assert read()["caravan_registry_up",] == 1
    stoppable_postgres.stop()
    assert read() == {("caravan_registry_up",): 0}
    stoppable_postgres.start()
    assert read()["caravan_registry_up",] == 1

"""A real cluster for tests: pods, namespaces, and PostgreSQL and S3 that pods reach.

`make test-cluster` starts the cluster, hands it the images and says where they are; there, those
tests run that ask for the fixture `cluster`, elsewhere the others.
"""

from __future__ import annotations

import os
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

sys.path.append(str(Path(__file__).parent))  # for the modules beside this one

from cluster_client import GPU, Cluster
from kfp_pipeline import Executor
from kfp_stand_in import StandIn
from kfp_steps import Pods
from services import Services, start_services

from caravan.registry import upgrade
from caravan.settings import Settings

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With a cluster, the tests of this directory that need one; without, the others."""
    has_one = "TEST_CLUSTER" in os.environ

    def runs(item: pytest.Item) -> bool:
        needs_one = "cluster" in getattr(item, "fixturenames", ())
        return needs_one == has_one or HERE not in item.path.parents

    config.hook.pytest_deselected(items=[item for item in items if not runs(item)])
    items[:] = filter(runs, items)


@pytest.fixture
def new_stand_in() -> Iterator[Callable[..., StandIn]]:
    """Starts a stand-in of Kubeflow Pipelines whose steps an executor runs."""
    made: list[StandIn] = []

    def new(executor: Executor, **options: object) -> StandIn:
        made.append(StandIn(lambda run, account: executor, **options))  # type: ignore[arg-type]
        return made[-1]

    yield new
    for server in made:
        server.close()


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    return Cluster(
        kubeconfig=os.environ["KUBECONFIG"],
        images=os.environ["TEST_IMAGES"],
        tag=os.environ["TEST_TAG"],
    )


@pytest.fixture
def namespace(cluster) -> Iterator[str]:
    """A namespace of the test's own, under the restricted profile where the cluster knows it.

    It has a service account `stage` without a token.
    """
    with cluster.new_namespace("caravan-test", restricted=True) as name:
        cluster.new_service_account(name, "stage")
        yield name


@pytest.fixture(scope="session")
def services(cluster) -> Iterator[Services]:
    """PostgreSQL and an S3 server as pods, reached from pods and from here."""
    with ExitStack() as stack:
        namespace = stack.enter_context(cluster.new_namespace("caravan-services"))
        yield stack.enter_context(start_services(cluster, namespace))


@pytest.fixture
def database(services) -> Iterator[str]:
    """Name of a new database with the registry's tables."""
    name = f"t{uuid.uuid4().hex[:12]}"
    with psycopg.connect(services.database_url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    upgrade(services.database_url(name))
    yield name
    with psycopg.connect(services.database_url("postgres"), autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def cluster_settings(services, database, tmp_path) -> Settings:
    """Settings of this process for the registry and the store that the test's pods use."""
    return Settings(home=tmp_path / "home", **services.settings(database))


@pytest.fixture
def stage_environment(cluster, services, database, namespace) -> str:
    """A Secret in the test's namespace, with the variables of a pod of stages."""
    variables = services.pod_environment(database)
    return cluster.new_secret(namespace, "caravan-environment", variables)


@pytest.fixture
def pipelines(cluster, namespace) -> Iterator[StandIn]:
    """Kubeflow Pipelines, whose steps are pods of the test's namespace."""
    server = StandIn(Pods(cluster.core, namespace).of_run)
    yield server
    server.close()


@pytest.fixture
def gpus(cluster) -> Iterator[Callable[[int], None]]:
    """Gives the node so many GPUs, which are none."""
    yield lambda count: cluster.set_extended_resource(GPU, count)
    cluster.set_extended_resource(GPU, None)

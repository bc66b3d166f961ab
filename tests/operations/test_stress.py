"""Many stages write to one PostgreSQL that goes away under them."""

from __future__ import annotations

import time
from collections.abc import Callable

import psycopg
import pytest
import sqlalchemy as sa

from caravan.registry import Registry, State
from caravan.settings import Settings
from forked import Script

PROCESSES, POINTS = 200, 1000
STAGE = """
    import sys
    sys.path.append({here!r})
    from stress_stages.points import PointsConfig
    from caravan.stages.execute import execute
    execute("points-{number}", "stress_stages.points", PointsConfig(number={number}), {{}}, {run!r})
"""


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_every_point_of_200_stages_is_there_once_though_postgres_restarts_twice(
    stoppable_postgres, tmp_path
):
    """Each stage is a process of its own, forked from one that has imported what it needs."""
    server = stoppable_postgres
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute(f"ALTER SYSTEM SET max_connections = {3 * PROCESSES}")
    server.stop()
    server.start()
    settings = Settings(
        home=tmp_path / "home", registry_url=server.url, patience_seconds=900,
        heartbeat_seconds=30, stale_after_seconds=3600,
    )  # fmt: skip
    with Registry(server.url) as registry:
        run = registry.create_run(
            {}, name="stress", seed=1, recipe_digest="d" * 64, recipe_dir=tmp_path
        )
    here = str(__file__).rpartition("/")[0]
    processes = [
        Script(STAGE.format(here=here, number=i, run=run), env=settings.environment())
        for i in range(PROCESSES)
    ]
    with Registry(server.url) as registry:
        _wait(lambda: _running(registry, run) == PROCESSES, processes)
    (tmp_path / "go").touch()  # all at once
    seen = []
    for wanted in (0.15, 0.5):
        _wait(lambda: _count(server.url) > wanted * PROCESSES * POINTS, processes)  # noqa: B023
        seen.append(_count(server.url))
        server.stop()
        time.sleep(2)
        server.start()
    for process in processes:
        assert process.wait(1200) == 0

    assert all(count < PROCESSES * POINTS for count in seen), "the restarts came too late"
    engine = sa.create_engine(server.url.replace("postgresql://", "postgresql+psycopg://"))
    with Registry(server.url) as registry, engine.connect() as connection:
        stages = registry.stage_runs(run)
        assert {stage.state for stage in stages} == {State.SUCCEEDED}
        assert sorted(stage.metrics["number"] for stage in stages) == list(range(PROCESSES))
        found = connection.execute(
            sa.text(
                "SELECT stage_run_id, count(*), count(DISTINCT (name, step)), sum(value) "
                "FROM metric GROUP BY stage_run_id"
            )
        ).all()
    engine.dispose()
    each = sum(step + i for step in range(1, 251) for i in range(4))
    assert sorted(found) == [(stage.id, POINTS, POINTS, each) for stage in stages]


def _count(url: str) -> int:
    with psycopg.connect(url) as connection:
        return connection.execute("SELECT count(*) FROM metric").fetchone()[0]


def _running(registry: Registry, run: str) -> int:
    return sum(stage.state is State.RUNNING for stage in registry.stage_runs(run))


def _wait(condition: Callable[[], bool], processes: list[Script], seconds: float = 900) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        failed = [process for process in processes if process.poll() not in (None, 0)]
        assert not failed, failed[0].stderr
        time.sleep(0.5)

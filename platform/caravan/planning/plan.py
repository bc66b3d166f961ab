"""What a plan says of each stage of a recipe, and of the whole."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StagePlan:
    """One stage run as it is expected."""

    node: str
    stage: str
    device: str
    """Name in the table of devices; `cpu` counts cores."""
    devices: int
    rows: float
    tokens: float
    """Trained, or read and written by a model."""
    flops: float
    seconds: float
    memory_gib: float
    """Of one process: on its GPU, or of the machine where it has none."""
    device_memory_gib: float
    tokens_per_pass: int | None = None
    """Of the recipe, `auto` worked out; None where nothing is trained."""
    passes_per_step: int | None = None
    fitting_tokens_per_pass: int | None = None
    """The most that fit the device; None where not even one row fits."""
    problem: str = ""
    """Why it does not fit, and what to do."""

    @property
    def device_hours(self) -> float:
        """GPU-hours; core-hours where there is no GPU."""
        return self.devices * self.seconds / 3600

    @property
    def gpu_hours(self) -> float:
        return 0.0 if self.device == "cpu" else self.device_hours

    @property
    def core_hours(self) -> float:
        return self.device_hours if self.device == "cpu" else 0.0


@dataclass(frozen=True)
class Plan:
    recipe: str
    parameters: int
    known_by: str
    """How the shape of the base model is known."""
    stages: tuple[StagePlan, ...]
    notes: tuple[str, ...]

    @property
    def gpu_hours(self) -> float:
        return sum(stage.gpu_hours for stage in self.stages)

    @property
    def core_hours(self) -> float:
        return sum(stage.core_hours for stage in self.stages)

    @property
    def seconds(self) -> float:
        """If one stage runs after another."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def problems(self) -> tuple[str, ...]:
        return tuple(f"{stage.node}: {stage.problem}" for stage in self.stages if stage.problem)

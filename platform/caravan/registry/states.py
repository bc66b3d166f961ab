"""The states of a run and of a stage run."""

from __future__ import annotations

from enum import StrEnum


class State(StrEnum):
    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    """Never stored: what a pending or running one is called when its heartbeat has stopped."""

    @property
    def finished(self) -> bool:
        return self in (State.SUCCEEDED, State.FAILED, State.CANCELLED)


LIVE = (State.PENDING, State.RUNNING)
STOPPED = (State.FAILED, State.CANCELLED, State.INTERRUPTED)
"""What can be continued."""

RunState = State
StageState = State

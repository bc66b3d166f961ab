"""The `caravan` command as a user runs it: a process in a directory of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from caravan.registry import Registry, StageRunRow
from caravan.settings import Settings
from caravan_pipelines.cli import main

MINI = Path(__file__).resolve().parent / "recipes" / "pocket-mini.yaml"
"""The pocket recipe, shrunken: the same stages in about a minute."""
CARAVAN = [sys.executable, "-c", "from caravan_pipelines.cli import main; main()"]


def command_here(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """The command, in this process: gives what it prints."""
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)

    def call(*arguments: str, code: int = 0, **variables: str) -> str:
        for name, value in variables.items():
            monkeypatch.setenv(f"CARAVAN_{name.upper()}", value)
        monkeypatch.setattr(sys, "argv", ["caravan", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        assert (ended.value.code or 0) == code, printed
        return printed.out + printed.err

    return call


@dataclass(frozen=True)
class Caravan:
    """One working directory and its `.caravan`."""

    directory: Path
    settings: Mapping[str, str] = field(default_factory=dict)
    """Environment variables besides the home."""

    @property
    def home(self) -> Path:
        return self.directory / ".caravan"

    @property
    def environment(self) -> dict[str, str]:
        own = {"CARAVAN_HOME": str(self.home), "COLUMNS": "120", **self.settings}
        return {k: v for k, v in os.environ.items() if not k.startswith("CARAVAN_")} | own

    def __call__(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*CARAVAN, *arguments], cwd=self.directory, env=self.environment,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if check:
            assert done.returncode == 0, done.stdout + done.stderr + self.log()
        return done

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*CARAVAN, *arguments], cwd=self.directory, env=self.environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def show(self, run: str = "latest") -> dict[str, Any]:
        return json.loads(self("show", run, "--json").stdout)

    def digests(self, run: str = "latest") -> dict[str, dict[str, str]]:
        """Of every artifact of a run, by stage and name."""
        return {stage["name"]: stage["artifacts"] for stage in self.show(run)["stages"]}

    def refused(self, *arguments: str) -> str:
        """What the command says when it refuses, as one line; a traceback is no way to say it."""
        done = self(*arguments, check=False)
        output = " ".join((done.stdout + done.stderr).split())
        assert done.returncode != 0, output
        assert "Traceback" not in output
        return output

    def stage(self, name: str) -> StageRunRow | None:
        """Of the latest run, from the registry: a command would take seconds to tell."""
        with Registry(f"sqlite:///{self.home}/registry.db") as registry:
            run = registry.latest_run()
            stages = registry.stage_runs(run.id) if run else []
        return next((stage for stage in stages if stage.node == name), None)

    def wait_for(
        self, condition: Callable[[], bool], seconds: float = 600, pause_seconds: float = 0.1
    ) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"waited {seconds} s in vain\n{self.log()}"
            time.sleep(pause_seconds)

    def processes(self) -> list[int]:
        """Living processes that work in this home."""
        home, found = f"CARAVAN_HOME={self.home}".encode(), []
        for directory in Path("/proc").iterdir():
            with suppress(OSError):
                if home in (directory / "environ").read_bytes().split(b"\0"):
                    found.append(int(directory.name))
        return found

    def log(self) -> str:
        return "\n".join(
            path.read_text(errors="replace")[-6000:]
            for path in self.directory.glob(".caravan/runs/*/log.txt")
        )

"""Write persona-driven prompts and their responses, and keep what passes the checks.

For every row: a persona goes into a request for a prompt (prompt engine); the prompt is checked; a
response is asked for (response engine) and checked, with the verifier where the prompt has a
ground truth. A row that fails a check is asked for again, up to `max_attempts` times.

Every attempt is written down in the work directory as it ends. A stage that is started again
reads them and asks only for what is missing; with engines that reply alike to the same seed, it
ends with the same rows as one that was never stopped.

Outputs:
    dataset: the rows, tasks in the order of the recipe.
    report: report.json (per task: asked for, kept, attempts, rejected by reason), rejected.jsonl.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from caravan.data.io import ROWS, write_json, write_rows
from caravan.data.mixing import generator
from caravan.data.readers import read_raw
from caravan.data.records import Conversation, Message
from caravan.data.synthesis_prompts import prompt_request, response_request
from caravan.errors import DataError
from caravan.inference import Engine, Generation, load_engine
from caravan.recipe import Sampling, SynthesisTask
from caravan.stages.configs import SynthesizeStageConfig
from caravan.stages.context import StageContext, StageResult
from caravan.stages.synthesis_journal import Attempt, Journal
from caravan.stages.synthesis_replies import (
    Rejection,
    WrittenPrompt,
    read_prompt,
    read_response,
)

NAME = "synthesize"
VERSION = 1

ROWS_PER_BATCH = 256
EXCERPT_CHARACTERS = 500


def external_files(config: SynthesizeStageConfig, recipe_dir: Path) -> list[Path]:
    """The file of the personas, if they are not the project's own."""
    name = config.synthesize.personas
    return [] if name == "pocket" else [recipe_dir / name]


def run(
    config: SynthesizeStageConfig, inputs: Mapping[str, Path], context: StageContext
) -> StageResult:
    settings = config.synthesize
    personas = load_personas(settings.personas, context.recipe_dir)
    engines = _Engines(config, context.recipe_dir)
    total = sum(task.count for task in settings.tasks)
    attempts: dict[str, list[Attempt]] = {}
    done = 0
    for task in settings.tasks:
        journal = Journal(context.workdir / f"{task.name}.jsonl")
        sampling = task.sampling or settings.sampling
        writer = TaskWriter(task, personas, engines, sampling, context.seed)
        for settled in writer.fill(journal, settings.max_attempts):
            context.progress(done + settled, total)
        done += task.count
        attempts[task.name] = journal.attempts
        rejected = sum(attempt.reason is not None for attempt in journal.attempts)
        context.log(done, {"kept": len(journal.rows), "rejected": rejected})

    rows = [row for made in attempts.values() for row in _in_order(made)]
    if not rows:
        reasons = Counter(a.reason for made in attempts.values() for a in made)
        raise DataError(f"no synthesised row passed the checks ({dict(reasons)}); look at engines")
    write_rows(context.output("dataset", "dataset") / ROWS, rows)
    report = {task.name: _summary(task, attempts[task.name]) for task in settings.tasks}
    directory = context.output("report", "report")
    write_json(directory / "report.json", report)
    write_rows(
        directory / "rejected.jsonl", (a for made in attempts.values() for a in made if a.reason)
    )
    kept = {f"{name}/kept": float(task["kept"]) for name, task in report.items()}
    return StageResult(metrics={"rows": len(rows), "asked": total, **kept})


def load_personas(name: str, recipe_dir: Path) -> list[str]:
    """The personas that come with the project (`pocket`), or those of a file.

    Raises:
        DataError: a row of the file has no persona.
    """
    if name == "pocket":
        from caravan.pocket.personas import PERSONAS

        return list(PERSONAS)
    found: dict[str, None] = {}
    for number, row in read_raw(recipe_dir / name):
        persona = row.get("persona") or row.get("input persona")
        if not isinstance(persona, str) or not persona.strip():
            raise DataError(f"{recipe_dir / name}, row {number}: no text in 'persona'; add it")
        found[persona.strip().rstrip(".")] = None
    if not found:
        raise DataError(f"{recipe_dir / name} holds no persona; add rows with a 'persona' field")
    return list(found)


class TaskWriter:
    """Writes the rows of one task, batch after batch."""

    def __init__(
        self,
        task: SynthesisTask,
        personas: Sequence[str],
        engines: _Engines,
        sampling: Sampling,
        seed: int,
    ) -> None:
        self.task, self.sampling, self.seed = task, sampling, seed
        self.engines = engines
        shuffled = generator(seed, "personas", task.name)
        self.personas = shuffled.sample(list(personas), len(personas))
        # No persona twice in a batch: engines answer the same request with the same reply.
        self.batch = min(ROWS_PER_BATCH, len(self.personas))

    def fill(self, journal: Journal, max_attempts: int) -> Iterator[int]:
        """Attempt every row until it passes or runs out of attempts; yields rows settled."""
        for start in range(0, self.task.count, self.batch):
            numbers = range(start, min(start + self.batch, self.task.count))
            for attempt in range(1, max_attempts + 1):
                due = [n for n in numbers if journal.is_due(self.row_id(n), attempt)]
                if due:
                    self._attempt(due, attempt, journal)
            yield numbers.stop

    def row_id(self, number: int) -> str:
        return f"{self.task.name}/{number}"

    def _attempt(self, numbers: Sequence[int], attempt: int, journal: Journal) -> None:
        """One prompt and one response for each row; asks for no response to a bad prompt."""
        batch = str(numbers[0] // self.batch)
        requests = [
            prompt_request(
                self.task, self.persona(n), generator(self.seed, self.row_id(n), str(attempt))
            )
            for n in numbers
        ]
        replies = self._generate(
            self.task.prompt_engine, [r.messages for r in requests], "prompt", batch, str(attempt)
        )
        prompts: dict[int, WrittenPrompt] = {}
        failed: dict[int, Rejection] = {}
        for number, request, reply in zip(numbers, requests, replies, strict=True):
            try:
                prompts[number] = read_prompt(self.task, request, reply)
            except Rejection as rejection:
                failed[number] = rejection
        responses = self._generate(
            self.task.response_engine,
            [response_request(self.task, prompt.text) for prompt in prompts.values()],
            "response",
            batch,
            str(attempt),
        )
        answered = dict(zip(prompts, responses, strict=True))
        for number in numbers:
            id = self.row_id(number)
            try:
                if number in failed:
                    raise failed[number]
                prompt = prompts[number]
                if journal.has_prompt(prompt.text):
                    raise Rejection("duplicate prompt", prompt.text)
                response = read_response(self.task, prompt, answered[number])
                journal.add(
                    Attempt(id=id, attempt=attempt, row=self._row(number, prompt, response))
                )
            except Rejection as rejection:
                journal.add(
                    Attempt(
                        id=id,
                        attempt=attempt,
                        reason=rejection.reason,
                        excerpt=rejection.text[:EXCERPT_CHARACTERS],
                    )
                )
        journal.flush()

    def persona(self, number: int) -> str:
        return self.personas[number % len(self.personas)]

    def _generate(
        self, engine: str, prompts: Sequence[Sequence[Message]], *use: str
    ) -> list[Generation]:
        if not prompts:
            return []
        text = "/".join([str(self.seed), self.task.name, *use])
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])
        replies = self.engines[engine].generate(prompts, self.sampling, seed=seed)
        return [reply[0] for reply in replies]

    def _row(self, number: int, prompt: WrittenPrompt, response: str) -> Conversation:
        return Conversation(
            id=self.row_id(number),
            messages=(
                Message(role="user", content=prompt.text),
                Message(role="assistant", content=response),
            ),
            source=self.task.name,
            skill=self.task.skill,
            license=self.task.license,
            verifier=prompt.verifier,
            ground_truth=prompt.ground_truth,
            persona=self.persona(number),
        )


class _Engines:
    """Engines by name, loaded when first asked for."""

    def __init__(self, config: SynthesizeStageConfig, recipe_dir: Path) -> None:
        self._configs, self._recipe_dir = config.engines, recipe_dir
        self._loaded: dict[str, Engine] = {}

    def __getitem__(self, name: str) -> Engine:
        if name not in self._loaded:
            self._loaded[name] = load_engine(self._configs[name], recipe_dir=self._recipe_dir)
        return self._loaded[name]


def _in_order(attempts: Sequence[Attempt]) -> list[Conversation]:
    rows = [attempt.row for attempt in attempts if attempt.row is not None]
    return sorted(rows, key=lambda row: int(row.id.rpartition("/")[2]))


def _summary(task: SynthesisTask, attempts: Sequence[Attempt]) -> dict[str, Any]:
    kept = sum(attempt.row is not None for attempt in attempts)
    return {
        "asked": task.count,
        "kept": kept,
        "failed": task.count - kept,
        "attempts": len(attempts),
        "rejected": dict(Counter(sorted(a.reason for a in attempts if a.reason))),
        "license": task.license,
        "skill": task.skill,
        "prompt_engine": task.prompt_engine,
        "response_engine": task.response_engine,
    }

"""Evaluation by a command of the user's: any harness that leaves a log that `souping.logs` reads."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, field, replace
from pathlib import Path
from typing import IO

import numpy as np

from souping.core.fields import Seconds, component
from souping.core.files import expanded
from souping.core.folders import LOCK_FILE, hold_folder
from souping.core.open_files import lock
from souping.core.protocols import Evaluator, LoadedModel, ModelHost
from souping.core.system import SHARED_MEMORY
from souping.core.text import first_line, listed, safe
from souping.core.types import Item, Items, Json, JsonObject, Missing, Record, UserError, digest
from souping.core.unit import POINTS, SCORE_ROUNDING, Unit
from souping.evaluate.servers.process import ENDED, Process
from souping.logs.records import Log, LoggedAnswer, LoggedMetric
from souping.logs.sources import read
from souping.logs.tables import is_table

ITEMS_FILE = "items.jsonl"
DONE = "done"
"""File that marks a command that ended without an error."""
LOWER = replace(POINTS, meaning="percent (lower is better)", higher_is_better=False)
OUTPUT_TAIL_BYTES = 1 << 16
"""Bytes of a command's output in which its last lines are."""


@component
class CommandEvaluator(Evaluator):
    """Command that evaluates a model folder, for example `sbatch --wait eval.sh {model} {items} {out}`.

    It is run without a shell. `{model}` is the folder of the model, `{items}` a JSONL file with the items to evaluate
    (id, category, prompt, answer and so on), and `{out}` an empty folder for the log: a CSV or JSONL file with `item,
    category, score`, or what lm_eval, bfcl-eval or inspect_ai write. Items are matched by id, those of lm_eval and
    inspect_ai also as `TASK/ID`. After `timeout` seconds the command is stopped. `higher_is_better` is the direction
    of its scores; a log that states the other one is refused.

    Logs stay in `dir` until their answers are in the store. If a command fails, the next run evaluates only the rest.
    """

    blocks_matter = False
    model_form = "folder"
    scored_by = "command"
    host = ModelHost()

    command: str
    timeout: Seconds = 86400.0
    dir: str = "outputs/command"
    higher_is_better: bool = True
    # Attempts at each model that this process holds, with their open lock files.
    _held: dict[str, dict[Path, IO[str]]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        if lacking := [name for name in ("{model}", "{out}") if name not in self.command]:
            raise UserError(
                f"evaluator.command={self.command} must contain {' and '.join(lacking)}"
            )

    @property
    def unit(self) -> Unit:
        return POINTS if self.higher_is_better else LOWER

    @property
    def settings(self) -> JsonObject:
        direction: dict[str, Json] = {} if self.higher_is_better else {"higher_is_better": False}
        return {"name": "command", "command": self.command, **direction}

    def needs(self) -> list[Missing]:
        program = shlex.split(self.command)[0]
        return (
            []
            if shutil.which(program)
            else [Missing(what=f"evaluator.command: there is no program {program}")]
        )

    def batches(self, items: Sequence[Item], replicate: int = 0) -> list[Items]:
        """One command for all items."""
        return [tuple(items)] if items else []

    def evaluate(
        self, model: LoadedModel, items: Sequence[Item], replicate: int = 0
    ) -> list[Record]:
        """Records of the items from the logs that are there, and from one command for the rest.

        Raises:
            UserError: the command failed, took too long, or left no log of all items, or one in another unit.
        """
        held = self._held.setdefault(model.soup, {})
        try:
            return self._records(model, items, held)
        except BaseException:
            self.close()
            raise

    def stored(self, soup: str, items: Sequence[Item]) -> None:
        """Remove the logs that this process holds of these items, and leave those of others."""
        lines = set(map(_line, items))
        for attempt, file in self._held.pop(soup, {}).items():
            if _requested(attempt) <= lines:
                shutil.rmtree(attempt, ignore_errors=True)
            file.close()

    def close(self) -> None:
        """Leave all logs to whoever evaluates these models next."""
        for soup in list(self._held):
            self.stored(soup, ())

    def _records(
        self, model: LoadedModel, items: Sequence[Item], held: dict[Path, IO[str]]
    ) -> list[Record]:
        """The records; `held` gets the attempts that they are from, with their locks."""
        home = expanded(self.dir).absolute()
        home.mkdir(parents=True, exist_ok=True)
        key = digest([model.soup, self.command])[:16]
        records = dict[str, Record]()
        for attempt in sorted(home.glob(f"{key}-*")):
            if attempt in held or _adopted(attempt, held):
                records |= self._collect(attempt, items)[0]
        missing = [item for item in items if item.id not in records]
        if missing:
            # Others see the folder once it is held.
            hidden = Path(tempfile.mkdtemp(dir=home, prefix="."))
            file = hold_folder(hidden)
            attempt = hidden.rename(home / f"{key}-{hidden.name[1:]}")
            held[attempt] = file
            problem = self._run(model.folder, missing, attempt)
            answers, unread = self._collect(attempt, missing)
            records |= answers
            if problem or unread:
                count = f"{len(records)} of {len(items)} answers came and are kept in {home}"
                raise UserError(
                    f"evaluator.command {problem or unread}\n{count}: repeat the run for the rest"
                )
        return [records[item.id] for item in items]

    def _run(self, folder: Path, items: Sequence[Item], attempt: Path) -> str:
        """Run the command; what went wrong, with the last lines of its output, or nothing."""
        out = attempt / "out"
        listing = attempt / ITEMS_FILE
        copy = attempt / "model"
        if folder.is_relative_to(SHARED_MEMORY):  # which other machines cannot read
            folder = shutil.copytree(folder, copy, symlinks=True)
        paths = {"{model}": folder, "{items}": listing, "{out}": out}
        out.mkdir()
        listing.write_text("".join(_line(item) + "\n" for item in items), encoding="utf-8")
        words = shlex.split(self.command)
        for name, path in paths.items():
            words = [word.replace(name, str(path)) for word in words]
        process = Process(words, os.environ, attempt / "command.log")
        try:
            late = not process.ends_in(self.timeout)
        finally:
            shutil.rmtree(copy, ignore_errors=True)
        text = process.tail(OUTPUT_TAIL_BYTES)
        status = (ENDED.findall(text) or ["?"])[-1]
        if not late and status == "0":
            (attempt / DONE).touch()
            return ""
        what = (
            f"took longer than evaluator.timeout={self.timeout:g}"
            if late
            else f"failed (status {status})"
        )
        last = " | ".join(
            line.strip()
            for line in text.splitlines()[-4:]
            if line.strip() and not ENDED.search(line)
        )
        return f"{what}: {safe(last)[-300:] or 'it printed nothing'}"

    def _collect(self, attempt: Path, items: Sequence[Item]) -> tuple[dict[str, Record], str]:
        """Records of these items from a command's log, and why there are not all of them."""
        answers = dict[str, list[LoggedAnswer]]()
        try:
            requested = _requested(attempt)
            logs = list((attempt / "out").iterdir())
            if not logs:
                raise UserError(f"it left no log in {attempt / 'out'}")
            source = _whole_lines(attempt, logs[0]) if len(logs) == 1 else attempt / "out"
            (log,) = read(source, lower=None)
        except (UserError, OSError, ValueError) as error:
            return {}, f"left no log that can be read: {first_line(error)}"
        hashed = log.harness in ("lm_eval", "inspect_ai")  # an id and a hash of the content
        metrics = {task.name: next(iter(task.metrics.values())) for task in log.tasks.values()}
        self._check(log, list(metrics.values()))
        for task, metric in metrics.items():
            for answer in metric.answers:
                if not np.isnan(answer.score):
                    item = answer.item.rpartition(" ")[0]
                    name = f"{task}/{item}" if hashed else answer.item
                    answers.setdefault(name, []).append(answer)
        due = [item.id for item in items if item.id in answers and _line(item) in requested]
        gone = [item.id for item in items if item.id not in answers]
        unread = (
            f"left no answer to {len(gone)} of {len(items)} items ({listed(gone, 3)})"
            if gone
            else ""
        )
        return {name: _record(name, answers[name]) for name in due}, unread

    def _check(self, log: Log, metrics: Sequence[LoggedMetric]) -> None:
        """Refuse scores in the other direction, which tables and inspect_ai do not state, and those above 1."""
        where = f"evaluator.command: {log.path}"
        stated = log.harness not in ("table", "inspect_ai")
        for metric in metrics:
            higher = metric.higher_is_better
            if higher != self.higher_is_better and (stated or not higher):
                word = "higher" if higher else "lower"
                fix = f"add evaluator.higher_is_better={str(higher).lower()}"
                if len({metric.higher_is_better for metric in metrics}) > 1:
                    fix = "evaluate it in a run of its own, as its other metrics are not"
                raise UserError(f"{where}: {metric.name} is better when it is {word}\n{fix}")
            for answer in metric.answers:
                if abs(answer.score - 0.5) > 0.5 + SCORE_ROUNDING:
                    what = f"item {answer.item!r:.60}: score {answer.score:g}"
                    raise UserError(
                        f"{where}: {what} must be a fraction of 1\n"
                        "correct that file, or remove its folder, and repeat the run"
                    )


def _adopted(attempt: Path, held: dict[Path, IO[str]]) -> bool:
    """Hold an attempt, unless its process is running."""
    with ExitStack() as stack, suppress(BlockingIOError, FileNotFoundError):
        file = stack.enter_context((attempt / LOCK_FILE).open("a"))
        lock(file.fileno(), wait=False)
        held[attempt] = file
        stack.pop_all()
    return attempt in held


def _requested(attempt: Path) -> set[str]:
    """The lines of the items that a command was started for."""
    listing = attempt / ITEMS_FILE
    return set(listing.read_text(encoding="utf-8").split("\n")[:-1]) if listing.exists() else set()


def _line(item: Item) -> str:
    table = {name: value for name, value in asdict(item).items() if name != "user_scorer"}
    return json.dumps(table, ensure_ascii=False, sort_keys=True, default=str)


def _whole_lines(attempt: Path, log: Path) -> Path:
    """The log; of a table that a command left when it was stopped, a copy without a last line that may be cut off."""
    if not is_table(log) or (attempt / DONE).exists():
        return log
    data = log.read_bytes()
    copy = attempt / f"whole{log.suffix}"
    copy.write_bytes(data[: data.rfind(b"\n") + 1])
    return copy


def _record(item: str, answers: Sequence[LoggedAnswer]) -> Record:
    """A record of the mean of an item's answers."""
    missing = any(answer.missing for answer in answers)
    return Record(
        item=item,
        score=float(np.mean([answer.score for answer in answers])),
        output=answers[0].output,
        prompt_key=answers[0].prompt_hash,
        outcome="unanswered"
        if missing
        else "truncated"
        if any(answer.cut for answer in answers)
        else "finished",
        reason="no answer, as the log says" if missing else "",
    )

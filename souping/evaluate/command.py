"""Evaluation by a command of the user's: any harness that leaves a log that `souping.logs` reads."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from souping.core.fields import Seconds, component
from souping.core.files import expanded
from souping.core.protocols import Evaluator, LoadedModel, ModelHost
from souping.core.system import SHARED_MEMORY
from souping.core.text import first_line, listed, safe
from souping.core.types import Item, Json, Missing, Record, UserError, digest
from souping.evaluate.servers.process import Process
from souping.logs import read
from souping.logs.records import LoggedAnswer
from souping.logs.tables import is_table

ENDED = re.compile(r"ended by itself with status (\S+)")
"""What the guard of a process writes under its output."""
DONE = "done"
"""File that marks a command that ended without an error."""


@component
class CommandEvaluator(Evaluator):
    """Command that evaluates a model folder, for example `sbatch --wait eval.sh {model} {items} {out}`.

    It is run without a shell. `{model}` is the folder of the model, `{items}` a JSONL file with the items to evaluate
    (id, category, prompt, answer and so on), and `{out}` an empty folder for the log: a CSV or JSONL file with `item,
    category, score`, or what lm_eval, bfcl-eval or inspect_ai write. Items are matched by id, those of lm_eval and
    inspect_ai also as `TASK/ID`. After `timeout` seconds the command is stopped.

    Whatever came of a command that failed stays in `dir`, and the next run evaluates only the rest.
    """

    blocks_matter = False
    model_form = "folder"
    scored_by = "command"
    host = ModelHost()

    command: str
    timeout: Seconds = 86400.0
    dir: str = "outputs/command"

    def __post_init__(self) -> None:
        if lacking := [name for name in ("{model}", "{out}") if name not in self.command]:
            raise UserError(
                f"evaluator.command={self.command} must contain {' and '.join(lacking)}"
            )

    @property
    def settings(self) -> Mapping[str, Json]:
        return {"name": "command", "command": self.command}

    def needs(self) -> list[Missing]:
        program = shlex.split(self.command)[0]
        return (
            []
            if shutil.which(program)
            else [Missing(what=f"evaluator.command: there is no program {program}")]
        )

    def batches(self, items: Sequence[Item], replicate: int = 0) -> list[tuple[Item, ...]]:
        """One command for all items."""
        return [tuple(items)] if items else []

    def evaluate(
        self, model: LoadedModel, items: Sequence[Item], replicate: int = 0
    ) -> list[Record]:
        """Records of the items from the logs that are there, and from one command for the rest.

        Raises:
            UserError: the command failed, took too long, or left no log of all items.
        """
        place = expanded(self.dir).absolute() / digest([model.soup, self.command])[:16]
        place.mkdir(parents=True, exist_ok=True)
        found = {
            record.item: record
            for attempt in sorted(place.iterdir())
            for record in _collect(attempt, items)[0]
        }
        rest = [item for item in items if item.id not in found]
        if rest:
            attempt = Path(tempfile.mkdtemp(dir=place))
            problem = self._run(model.folder, rest, attempt)
            records, unread = _collect(attempt, rest)
            found |= {record.item: record for record in records}
            if problem or unread:
                kept = f"{len(found)} of {len(items)} answers came and are kept in {place}: repeat the run for the rest"
                raise UserError(f"evaluator.command {problem or unread}\n{kept}")
        shutil.rmtree(place)
        return [found[item.id] for item in items]

    def _run(self, folder: Path, items: Sequence[Item], attempt: Path) -> str:
        """Run the command; what went wrong, with the last lines of its output, or nothing."""
        out, listing = attempt / "out", attempt / "items.jsonl"
        if folder.is_relative_to(SHARED_MEMORY):  # which other machines cannot read
            folder = shutil.copytree(folder, attempt / "model", symlinks=True)
        paths = {"{model}": folder, "{items}": listing, "{out}": out}
        out.mkdir()
        listing.write_text("".join(_line(item) + "\n" for item in items), encoding="utf-8")
        words = shlex.split(self.command)
        for name, path in paths.items():
            words = [word.replace(name, str(path)) for word in words]
        process = Process(words, os.environ, attempt / "command.log")
        late = not process.ends_in(self.timeout)
        text = process.log.read_text(encoding="utf-8", errors="replace")
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


def _line(item: Item) -> str:
    table = {name: value for name, value in asdict(item).items() if name != "user_scorer"}
    return json.dumps(table, ensure_ascii=False, sort_keys=True, default=str)


def _collect(attempt: Path, items: Sequence[Item]) -> tuple[list[Record], str]:
    """Records of these items from a command's log, and why there are not all of them."""
    answers = dict[str, list[LoggedAnswer]]()
    try:
        requested = set((attempt / "items.jsonl").read_text(encoding="utf-8").splitlines())
        logs = list((attempt / "out").iterdir())
        if not logs:
            raise UserError(f"it left no log in {attempt / 'out'}")
        (log,) = read(_whole_lines(attempt, logs[0]) if len(logs) == 1 else attempt / "out")
    except (UserError, OSError, ValueError) as error:
        return [], f"left no log that can be read: {first_line(error)}"
    hashed = log.harness in ("lm_eval", "inspect_ai")  # an id and a hash of the content
    for task in log.tasks.values():
        for answer in next(iter(task.metrics.values())).answers:
            if not np.isnan(answer.score):
                name = f"{task.name}/{answer.item.rpartition(' ')[0]}" if hashed else answer.item
                answers.setdefault(name, []).append(answer)
    due = [item.id for item in items if item.id in answers and _line(item) in requested]
    gone = [item.id for item in items if item.id not in answers]
    unread = (
        f"left no answer to {len(gone)} of {len(items)} items ({listed(gone, 3)})" if gone else ""
    )
    return [_record(name, answers[name]) for name in due], unread


def _whole_lines(attempt: Path, log: Path) -> Path:
    """The log; of a table that a command left when it was stopped, a copy without a last line that may be cut off."""
    if not is_table(log) or (attempt / DONE).exists():
        return log
    data, copy = log.read_bytes(), attempt / f"whole{log.suffix}"
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

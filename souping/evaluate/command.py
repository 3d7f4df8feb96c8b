"""Evaluation by a command of the user's: any harness that leaves a log that `souping.logs` reads."""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import IO

from souping.core.fields import Seconds, component
from souping.core.files import expanded
from souping.core.folders import LOCK_FILE, hold_folder
from souping.core.open_files import lock
from souping.core.protocols import Evaluator, Hosting, LoadedModel, ModelHost, Sampling, Scoring
from souping.core.system import SHARED_MEMORY
from souping.core.text import first_line, listed, safe
from souping.core.types import Item, Items, JsonObject, Missing, Record, UserError, digest, frozen
from souping.core.unit import POINTS, Unit
from souping.evaluate.logged import item_line, log_in, records_by_item
from souping.evaluate.servers.server_process import ENDED, Process
from souping.logs.answer_tables import is_table
from souping.logs.sources import read_logs

ITEMS_FILE = "items.jsonl"
DONE = "done"
"""File that marks a command that ended without an error."""
PERCENT_LOWER = replace(POINTS, meaning="percent (lower is better)", higher_is_better=False)
OUTPUT_TAIL_BYTES = 1 << 16
"""Bytes at the end of a command's output that are searched for its last lines."""


class HeldLogs:
    """Attempts that this process holds, so that no other one reads or removes them.

    An attempt is the folder of one call of the command on one model, with its items, log and lock file.
    """

    def __init__(self) -> None:
        # {soup: {attempt: its lock file, open as long as it is held}}
        self._files: dict[str, dict[Path, IO[str]]] = {}

    def hold(self, soup: str, attempt: Path, lock_file: IO[str]) -> None:
        """Note an attempt that this process has locked by this open file."""
        self._files.setdefault(soup, {})[attempt] = lock_file

    def adopt(self, soup: str, attempt: Path) -> bool:
        """Hold an attempt unless another process does. Returns whether this process holds it now."""
        if attempt in self._files.get(soup, {}):
            return True
        try:
            lock_file = (attempt / LOCK_FILE).open("a")
        # Another process has just removed the attempt.
        except FileNotFoundError:
            return False
        try:
            lock(lock_file.fileno(), wait=False)
        except BlockingIOError:
            lock_file.close()
            return False
        self.hold(soup, attempt, lock_file)
        return True

    def release(self, soup: str, items: Sequence[Item]) -> None:
        """Let go of a model's attempts. Attempts for these items alone are removed; all others stay for the next run
        that evaluates this model.
        """
        lines = set(map(item_line, items))
        for attempt, file in self._files.pop(soup, {}).items():
            if _requested(attempt) <= lines:
                shutil.rmtree(attempt, ignore_errors=True)
            file.close()

    def close(self) -> None:
        """Let go of all attempts, which stay for the next run."""
        for soup in list(self._files):
            self.release(soup, ())


@frozen
class CommandHosting(Hosting):
    """Folders of models, whose logs stay until their answers are in the store."""

    logs: HeldLogs

    def release(self, soup: str, items: Sequence[Item]) -> None:
        """Let go of the logs of these answers, which are no longer needed."""
        self.logs.release(soup, items)


@component
class CommandEvaluator(Evaluator):
    """Command that evaluates a model folder, for example `sbatch --wait eval.sh {model} {items} {out}`.

    It is run without a shell. `{model}` is the folder of the model, `{items}` a JSONL file with the items to evaluate
    (id, category, prompt, answer and so on), and `{out}` an empty folder for the log: a CSV or JSONL file with `item,
    category, score`, or what lm_eval, bfcl-eval or inspect_ai write. Items are matched by category and id; in logs of
    lm_eval and inspect_ai the id is `TASK/ID`. After `timeout` seconds the command is stopped. `higher_is_better` is
    the direction of the command's scores; a log that states the other direction is refused.

    Logs stay in `scratch` until their answers are in the store. If a command fails, the next run evaluates only the
    rest.
    """

    sampling = Sampling(blocks_matter=False)

    command: str
    timeout: Seconds = 86400.0
    scratch: str = "outputs/command"
    higher_is_better: bool = True
    _logs: HeldLogs = field(default_factory=HeldLogs, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        lacking = [name for name in ("{model}", "{out}") if name not in self.command]
        if lacking:
            raise UserError(
                f"evaluator.command={self.command} must contain {' and '.join(lacking)}"
            )

    @property
    def unit(self) -> Unit:
        return POINTS if self.higher_is_better else PERCENT_LOWER

    @property
    def settings(self) -> JsonObject:
        """What a score depends on besides the model and the item; a direction that is the default is left out."""
        settings = {"name": "command", "command": self.command}
        if self.higher_is_better:
            return settings
        return {**settings, "higher_is_better": False}

    @property
    def scoring(self) -> Scoring:
        return Scoring(scored_by=self.command)

    @property
    def hosting(self) -> Hosting:
        return CommandHosting(
            model_form="folder", host=ModelHost(), command=self.words, logs=self._logs
        )

    def needs(self) -> list[Missing]:
        program = shlex.split(self.command)[0]
        if shutil.which(program):
            return []
        return [Missing(what=f"evaluator.command: there is no program {program}")]

    def batches(self, items: Sequence[Item], repeat: int = 0) -> list[Items]:
        """One batch of all items, for one call of the command."""
        return [tuple(items)] if items else []

    def words(self, model: Path, items: Path, out: Path) -> list[str]:
        """The command with its placeholders replaced."""
        words = shlex.split(self.command)
        for name, path in {"{model}": model, "{items}": items, "{out}": out}.items():
            words = [word.replace(name, str(path)) for word in words]
        return words

    def evaluate(self, model: LoadedModel, items: Sequence[Item], repeat: int = 0) -> list[Record]:
        """Records of the items: from the logs of earlier attempts, and from one call of the command for the others.

        Raises:
            UserError: the command failed, took too long, or left no log of all items, or one in another unit.
        """
        try:
            return self._records(model, items)
        except BaseException:
            # The next run may use the logs.
            self.close()
            raise

    def close(self) -> None:
        self._logs.close()

    def _records(self, model: LoadedModel, items: Sequence[Item]) -> list[Record]:
        """The records in the items' order. Afterwards this process holds the attempts whose logs they are from."""
        home = expanded(self.scratch).absolute()
        home.mkdir(parents=True, exist_ok=True)
        key = digest([model.soup, self.command])[:16]
        records = dict[str, Record]()
        for attempt in sorted(home.glob(f"{key}-*")):
            if self._logs.adopt(model.soup, attempt):
                logged, _ = self._collect(attempt, items)
                records |= logged
        missing = [item for item in items if item.id not in records]
        if missing:
            # Other processes look for `key-*`, so they see the folder only when it is held.
            hidden = Path(tempfile.mkdtemp(dir=home, prefix="."))
            file = hold_folder(hidden)
            # Without the point that hides it.
            attempt = hidden.rename(home / f"{key}-{hidden.name[1:]}")
            self._logs.hold(model.soup, attempt, file)
            problem = self._run(model.folder, missing, attempt)
            # Also after a problem: the items that were answered are not evaluated again.
            logged, lacking = self._collect(attempt, missing)
            records |= logged
            if problem or lacking:
                count = f"{len(records)} of {len(items)} answers came and are kept in {home}"
                raise UserError(
                    f"evaluator.command {problem or lacking}\n{count}: repeat the run for the rest"
                )
        return [records[item.id] for item in items]

    def _run(self, folder: Path, items: Sequence[Item], attempt: Path) -> str:
        """Run the command on these items in the attempt's folder. Returns what went wrong, empty if nothing did."""
        out = attempt / "out"
        listing = attempt / ITEMS_FILE
        copy = attempt / "model"
        if folder.is_relative_to(SHARED_MEMORY):  # which other machines cannot read
            folder = shutil.copytree(folder, copy, symlinks=True)
        out.mkdir()
        listing.write_text("".join(item_line(item) + "\n" for item in items), encoding="utf-8")
        process = Process(self.words(folder, listing, out), os.environ, attempt / "command.log")
        try:
            late = not process.ends_in(self.timeout)
        finally:
            shutil.rmtree(copy, ignore_errors=True)
        output = process.tail(OUTPUT_TAIL_BYTES)
        # The guard of the process writes the exit status below the output.
        status = (ENDED.findall(output) or ["?"])[-1]
        if late:
            return f"took longer than evaluator.timeout={self.timeout:g}: {_last_lines(output)}"
        if status != "0":
            return f"failed (status {status}): {_last_lines(output)}"
        (attempt / DONE).touch()
        return ""

    def _collect(self, attempt: Path, items: Sequence[Item]) -> tuple[dict[str, Record], str]:
        """({item id: record} of these items from an attempt's log, a problem: what it lacks, or why it cannot be read).

        The problem is empty if the log has all items.
        """
        try:
            requested = _requested(attempt)
            # With `lower=None`, scores may be in any range: `records_by_item` checks them.
            log, *further = read_logs(_whole_lines(attempt, log_in(attempt / "out")), lower=None)
        except (UserError, OSError, ValueError) as error:
            return {}, f"left no log that can be read: {first_line(error)}"
        if further:
            return {}, f"left a log of {1 + len(further)} runs: write the answers of one model"
        try:
            fix = "correct that file, or remove its folder, and repeat the run"
            categories = {item.id: item.category for item in items}
            logged = records_by_item(log, categories, self.higher_is_better, fix)
        except UserError as error:
            raise error.at("evaluator.command") from error
        records = dict[str, Record]()
        unanswered = list[str]()
        for item in items:
            if item.id not in logged:
                unanswered.append(item.id)
            # An item of this id may have had another content at that attempt.
            elif item_line(item) in requested:
                records[item.id] = logged[item.id]
        if not unanswered:
            return records, ""
        count = f"{len(unanswered)} of {len(items)} items"
        return records, f"left no answer to {count} ({listed(unanswered, 3)})"


def _last_lines(output: str) -> str:
    """The last lines that a command printed, on one line of at most 300 characters."""
    lines = [line.strip() for line in output.splitlines()[-4:] if not ENDED.search(line)]
    last = " | ".join(line for line in lines if line)
    return safe(last)[-300:] or "it printed nothing"


def _requested(attempt: Path) -> set[str]:
    """Lines of the items that an attempt was for, as `item_line` writes them; empty if it was not yet written."""
    listing = attempt / ITEMS_FILE
    if not listing.exists():
        return set()
    # After the last line break there is nothing, or a line that was not written completely.
    return set(listing.read_text(encoding="utf-8").split("\n")[:-1])


def _whole_lines(attempt: Path, log: Path) -> Path:
    """The log itself, or a copy without its last line if that may be incomplete.

    A command that was stopped may have cut off the last line of a CSV or JSONL table.
    """
    if not is_table(log) or log.suffix == ".parquet" or (attempt / DONE).exists():
        return log
    data = log.read_bytes()
    copy = attempt / f"whole{log.suffix}"
    copy.write_bytes(data[: data.rfind(b"\n") + 1])
    return copy

"""cook(): pool, score, select, search, write, report. One run from candidates to evidence."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from souping.core.files import nearby, said
from souping.core.protocols import Part
from souping.core.text import fitted, safe
from souping.core.types import LateError, UserError
from souping.pipeline.kept_soup import check_target, written_soup
from souping.pipeline.settings import MergeSettings, RunSettings
from souping.pipeline.upload import Target, check, push

SHOWN = (
    "report.html",
    "report.md",
    "report.json",
    "selection.json",
    "trials.csv",
    "samples.jsonl.gz",
    "recipe.json",
    "plan.json",
    "config.yaml",
)


def cook(run: MergeSettings) -> float | None:
    """Select, search, soup and prove, or only merge. Returns the objective on the search fold, None without a search.

    A merge loads none of what a search needs.
    """
    if isinstance(run, RunSettings) and run.benchmark.opening:
        print(run.benchmark.opening, flush=True)
    check_settings(run)
    if run.upload is not None and not run.plan:
        check(run.upload)  # whoever may not write to the Hub learns it before the run, not after it
    with ExitStack() as parts:
        for part in _parts(run):
            parts.callback(part.close)  # servers and ranks wait for the next soup until then
        outcome, objective = _made(run)
    with _results_stay():
        try:
            soup = written_soup(run, outcome)
        except LateError:
            _show(run, outcome, None)
            raise
        _show(run, outcome, soup)
        if run.upload is not None and not run.plan:
            _upload(run, run.upload, soup)
    return objective


def _parts(run: MergeSettings) -> list[Part]:
    """The parts that may hold something between two soups."""
    if not isinstance(run, RunSettings):
        return [run.merge]
    beside = [entry.evaluator for entry in run.also if entry.evaluator is not None]
    return [run.evaluator, run.merge, *beside]


def _made(run: MergeSettings) -> tuple[dict[str, Any], float | None]:
    """(parts of the report, objective on the search fold)."""
    if not isinstance(run, RunSettings):
        from souping.pipeline.merge_only import merge, rebuild

        return {"soup": rebuild(run, run.recipe) if run.recipe else merge(run)}, None
    from souping.pipeline.staged import perform

    outcome, won = perform(run)
    return outcome, None if won is None else won.result.objective


def check_settings(run: MergeSettings) -> None:
    """Refuse a target that is in use, and items for an evaluator that brings its own (an experiment may name some).

    Raises:
        UserError: the key and what to do.
    """
    check_target(run)
    if not isinstance(run, RunSettings):
        return
    from souping.evaluate.benchmark import OwnBenchmark

    if run.upload is not None and run.stop_after:
        raise UserError(f"upload={run.upload.repo} sends a finished soup: leave stop_after={run.stop_after} out")
    if run.upload is not None and run.limit is not None:
        raise UserError(f"limit={run.limit} is a dry run, whose soup is not for the Hub: leave upload out")
    if run.evaluator.brings_items and not isinstance(run.benchmark, OwnBenchmark):
        name = type(run.evaluator).__name__
        raise UserError(f"evaluator={name} brings its own items and asks no others: add benchmark=own")


@contextmanager
def _results_stay() -> Iterator[None]:
    """What goes wrong once everything is written (a pipe that closed, the Hub) takes none of it away."""
    try:
        yield
    except LateError:
        raise
    except (UserError, OSError) as error:
        raise LateError(said(error)) from error


def _upload(run: MergeSettings, goal: Target, soup: Path | None) -> None:
    if soup is None:  # one expert for everything: no soup was written
        print(f"  {'upload':16} nothing to send: there is no soup")
        return
    url = push(goal, soup, run.run_dir / "report.json", run.store_path)
    print(f"  {'upload':16} {url}")


def _show(run: MergeSettings, outcome: dict[str, Any], soup: Path | None) -> None:
    """The end of a run on standard output: the rows, and where everything lies."""
    if "soup" not in outcome:
        _tables(outcome)
    for name in SHOWN:
        if (run.run_dir / name).exists():
            print(f"  {name:16} {safe(nearby(run.run_dir / name))}")
    if soup is not None:
        print(f"  {'soup':16} {safe(nearby(soup))}")
        if (soup / "recipe.json").exists():
            _command("rebuild", run.rebuild_command)
    if run.tracker.hint:
        print(f"  {'tracker':16} {safe(run.tracker.hint)}")
    _hint(run)


def _command(what: str, command: str) -> None:
    """A command to be copied: on a terminal over several lines that a shell reads as one."""
    line = f"  {what:16} {safe(command)}"
    print(fitted(line, shutil.get_terminal_size().columns, " \\") if sys.stdout.isatty() else line)


def _hint(run: MergeSettings) -> None:
    """What to do next: the last line."""
    if isinstance(run, RunSettings) and run.stop_after == "search" and run.command and not run.sweep:
        _command("finish", run.finish_command)
    elif (run.run_dir / "report.html").exists():
        print(f"open {safe(shlex.quote(nearby(run.run_dir / 'report.html')))}")


def _tables(outcome: dict[str, Any]) -> None:
    from souping.report.terminal import also_table, output_console, report_table

    out = output_console()
    out.print(report_table(outcome))
    if outcome.get("also"):
        out.print(also_table(outcome))

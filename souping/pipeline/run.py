"""cook(): pool, score, select, search, write, report. One run from candidates to evidence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from souping.core.text import safe
from souping.core.types import LateError, Selection, UserError
from souping.pipeline.checks import check_settings, complaints, flat_categories, not_measured
from souping.pipeline.merge_only import merge, rebuild
from souping.pipeline.settings import RunSettings, nearby
from souping.pipeline.stages import RunStages, select
from souping.pipeline.store import Store
from souping.pipeline.upload import check, push
from souping.report.files import as_json, put, selection_dict, trial_rows, write_report, write_trials
from souping.report.progress import Progress
from souping.report.terminal import also_table, report_table
from souping.search.loop import SearchResult

SHOWN = (
    "report.html",
    "report.md",
    "report.json",
    "selection.json",
    "trials.csv",
    "recipe.json",
    "plan.json",
    "config.yaml",
)


def cook(run: RunSettings) -> float | None:
    """Select, search, soup and prove. Returns the objective on the search fold, None after `stop_after=select`."""
    if run.benchmark.opening:
        print(run.benchmark.opening, flush=True)
    check_settings(run)
    sends = run.upload is not None and not run.plan
    if sends:
        _check_upload(run)
    with ExitStack() as parts:
        for part in (run.evaluator, run.merge, *(entry.evaluator for entry in run.also)):
            if part is not None:
                parts.callback(part.close)  # servers and ranks wait for the next soup until then
        report, won = _stages(run)
    with _results_stay():
        _show(run, report)
        if sends:
            _upload(run)
    return None if won is None else won.result.objective


def _said(error: UserError | OSError) -> str:
    return f"{error.filename or 'file system'}: {error.strerror}" if isinstance(error, OSError) else str(error)


@contextmanager
def _results_stay() -> Iterator[None]:
    """What goes wrong once everything is written (a pipe that closed, the Hub) takes none of it away."""
    try:
        yield
    except LateError:
        raise
    except (UserError, OSError) as error:
        raise LateError(_said(error)) from error


def _check_upload(run: RunSettings) -> None:
    """Whoever may not write to the Hub learns it before the run, not after it."""
    assert run.upload is not None
    check(run.upload)


def _upload(run: RunSettings) -> None:
    assert run.upload is not None
    if not run.out.exists():  # one expert for everything: no soup was written
        print(f"  {'upload':15} nothing to send: there is no soup")
        return
    url = push(run.upload, run.out, run.run_dir / "report.json", run.store_path)
    print(f"  {'upload':15} {url}")


def _stages(run: RunSettings) -> tuple[dict[str, Any], SearchResult | None]:
    """What the run came to: the parts of its report, and the search's outcome where there was one."""
    if run.merges_only:
        soup = rebuild(run, run.recipe) if run.recipe else merge(run)
        return {"soup": soup}, None
    if run.selects_from_table:
        return _select_from_table(run), None
    run = run.with_items()
    run.pool.resolve()
    with Progress() as progress, Store(run.store_path) as store:
        return _perform(RunStages.open(run, store, progress))


def _perform(stages: RunStages) -> tuple[dict[str, Any], SearchResult | None]:
    """Walk the schedule, then write down what it came to."""
    run = stages.run
    run.tracker.start(run.config, run.run_dir)
    report: dict[str, Any] | None = None
    try:
        stages.schedule.walk(stages)
        assert stages.selection is not None
        if stages.outcome is None:
            return {"selection": selection_dict(stages.selection, stages.scores)}, None
        if run.stop_after == "search":
            return write_search(run, stages.outcome, stages.selection), stages.outcome
        report, trials = stages.whole_report()
        write_trials(trials, report, run.run_dir / "trials.csv")
        write_report(report, trials, run.run_dir)
        stages.replace_card(report)
        return report, stages.outcome
    except (UserError, OSError) as error:
        if stages.frozen is None:
            raise
        raise LateError(f"{_said(error)}\nthe soup is written: {nearby(stages.frozen)}") from error
    finally:
        stages.workers.close()
        stages.pool.close()
        run.tracker.finish(report, run.run_dir)


def write_search(run: RunSettings, outcome: SearchResult, selection: Selection) -> dict[str, Any]:
    """What a run that stops after its search leaves: the trials and the recipe."""
    parts = {"selection": selection_dict(selection), "recipe": outcome.recipe.as_dict()}
    write_trials(trial_rows(outcome.trials, selection), parts, run.run_dir / "trials.csv")
    put(run.run_dir / "recipe.json", as_json(parts["recipe"]).encode())
    return parts


def _select_from_table(run: RunSettings) -> dict[str, Any]:
    """Published scores alone: candidates are names, no folder is opened."""
    for complaint in complaints(run, {}, ()):
        raise complaint
    with Progress() as progress:
        scores = run.scores.matrix([c.name for c in run.pool.resolve()], not_measured)
        for warning in flat_categories(scores):
            progress.say(f"note: {warning}")
        return {"selection": selection_dict(select(run, scores, progress), scores)}


def _show(run: RunSettings, outcome: dict[str, Any]) -> None:
    """The end of a run on standard output: the rows, and where everything lies."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=110)
    if "soup" not in outcome:
        console.print(report_table(outcome))
    if outcome.get("also"):
        console.print(also_table(outcome))
    for name in SHOWN:
        if (run.run_dir / name).exists():
            console.print(f"  {name:15} {safe(nearby(run.run_dir / name))}", soft_wrap=True, markup=False)
    if run.out.exists():
        console.print(f"  {'soup':15} {safe(nearby(run.out))}", soft_wrap=True, markup=False)
        if (run.out / "recipe.json").exists():
            console.print(f"  {'rebuild':15} {safe(run.rebuild_command)}", soft_wrap=True, markup=False)

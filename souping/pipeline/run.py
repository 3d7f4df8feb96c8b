"""cook(): pool, score, select, search, write, report. One run from candidates to evidence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from souping.core.scores import ScoreMatrix
from souping.core.types import LateError, Selection, UserError
from souping.evaluate.benchmark import OwnBenchmark
from souping.pipeline.merge_only import merge, rebuild
from souping.pipeline.models import free_target
from souping.pipeline.settings import RunSettings
from souping.pipeline.stages import RunStages
from souping.pipeline.store import Store
from souping.pipeline.upload import check, push
from souping.report.cards import card
from souping.report.files import as_json, put, selection_dict, trial_rows, write_report, write_selection, write_trials
from souping.report.progress import Progress
from souping.report.terminal import also_table, gate_table, report_table
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
    sends = run.upload is not None and not run.plan
    if sends:
        _check_upload(run)
    with ExitStack() as parts:
        for part in (run.evaluator, run.merge, *(entry.evaluator for entry in run.also)):
            if hasattr(part, "close"):  # servers and ranks wait for the next soup until then
                parts.callback(part.close)
        outcome = _stages(run)
    with _results_stay():
        _show(run, outcome)
        if sends:
            _upload(run)
    found: SearchResult | None = outcome.get("found")
    return found.result.objective if found else None


@contextmanager
def _results_stay() -> Iterator[None]:
    """What goes wrong once everything is written (a pipe that closed, the Hub) takes none of it away."""
    try:
        yield
    except LateError:
        raise
    except (UserError, OSError) as error:
        raise LateError(str(error)) from error


def _check_upload(run: RunSettings) -> None:
    """Whoever may not write to the Hub learns it before the run, not after it."""
    assert run.upload is not None
    if run.stop_after:
        raise UserError(f"upload={run.upload.repo} sends a finished soup: leave stop_after={run.stop_after} out")
    check(run.upload)


def _upload(run: RunSettings) -> None:
    assert run.upload is not None
    if not run.out.exists():  # one expert for everything: no soup was written
        print(f"  {'upload':15} nothing to send: there is no soup")
        return
    url = push(run.upload, run.out, run.run_dir / "report.json", run.store_path)
    print(f"  {'upload':15} {url}")


def _stages(run: RunSettings) -> dict[str, Any]:
    """What the run came to."""
    check_settings(run)
    if run.merges_only:
        return {"soup": rebuild(run, run.recipe) if run.recipe else merge(run)}
    from_table = run.stop_after == "select" and run.scores.published  # asks no item, needs no evaluator's environment
    own = None if from_table else getattr(run.evaluator, "benchmark", None)
    if isinstance(run.benchmark, OwnBenchmark) and own is not None:
        run = replace(run, benchmark=own)
    run.pool.resolve()
    with Progress() as progress:
        if from_table:
            return _select_from_table(run, progress)
        with Store(run.store_path) as store:
            return _cook(RunStages.open(run, store, progress))


def check_settings(run: RunSettings) -> None:
    """Refuse, before a run or its plan, a target that is in use, and items for an evaluator that brings its own.

    An experiment may have named such items.
    """
    free_target(run.out)
    if (
        not run.merges_only
        and hasattr(type(run.evaluator), "benchmark")
        and not isinstance(run.benchmark, OwnBenchmark)
    ):
        name = type(run.evaluator).__name__
        raise UserError(f"evaluator={name} brings its own items and asks no others: add benchmark=own")


def _cook(session: RunStages) -> dict[str, Any]:
    run = session.run
    run.tracker.start(run.config, run.run_dir)
    report: dict[str, Any] | None = None
    try:
        _gate(session)
        scores = session.score()
        selection = _select(run, scores, session.progress)
        if run.stop_after == "select":
            return {"selection": selection_dict(selection, scores)}
        found = session.search(selection)
        session.progress.say(f"best on the search fold: {100 * found.result.objective:.1f}, {recipe_line(found)}")
        if run.stop_after == "search":
            return write_search(run, found, selection)
        report = write_and_report(session, scores, selection, found)
        return {**report, "found": found}
    finally:
        session.kitchen.close()
        run.tracker.finish(report, run.run_dir)


def _gate(session: RunStages) -> None:
    """Stop (or warn) where a single model is not what it was expected to be, before anything else costs time."""
    found = session.check_singles()
    if found is None:
        return
    if not found.failed:
        session.progress.say(found.sentence())
        return
    session.progress.show(gate_table({"gate": found.as_dict()}))
    if found.mode == "error":
        raise UserError(f"{found.sentence()}\nnothing is lost: what was evaluated is in the store (gate=warn goes on)")
    session.notes.append(found.sentence())


def write_and_report(
    session: RunStages, scores: ScoreMatrix, selection: Selection, found: SearchResult
) -> dict[str, Any]:
    """Write the soup, then open the report fold for it and write the evidence down."""
    run, trials = session.run, trial_rows(found.trials, selection)
    parts = {
        "experiment": run.name,
        "benchmark": _benchmark(run),
        "objective": session.objective(found),
        "selection": selection_dict(selection, scores),
        "recipe": found.recipe.as_dict(),
        "folds": session.folds.counts(),
        "warnings": session.warnings(scores),
    }
    if len(selection.ingredients) > 1:
        text = card({**parts, "search": _search_scores(session, found)})
        session.progress.stage("writing the soup")
        session.write(found, text)
    if session.gate is not None:
        parts["gate"] = session.gate.as_dict()
    evidence = session.evidence(scores, selection, found)
    if session.sides:
        evidence["also"] = session.also(selection, found)
    report = {**parts, **evidence, "stability": session.stability(scores), "cost": session.cost(len(trials))}
    write_report(report, trials, run.run_dir)
    write_trials(trials, report, run.run_dir / "trials.csv")
    return report


def write_search(run: RunSettings, found: SearchResult, selection: Selection) -> dict[str, Any]:
    """What a run that stops after its search leaves: the trials and the recipe."""
    parts = {"selection": selection_dict(selection), "recipe": found.recipe.as_dict()}
    write_trials(trial_rows(found.trials, selection), parts, run.run_dir / "trials.csv")
    put(run.run_dir / "recipe.json", as_json(parts["recipe"]).encode())
    return {**parts, "found": found}


def recipe_line(found: SearchResult) -> str:
    return " + ".join(f"{w:.3g} {n}" for n, w in zip(found.recipe.ingredients, found.recipe.weights, strict=True))


def _search_scores(session: RunStages, found: SearchResult) -> dict[str, Any]:
    """The search fold's scores, which the model card shows: the report fold is still closed when it is written."""
    session.progress.stage("ingredients on the search fold")
    return {
        "objective": found.result.objective,
        "categories": dict(found.result.categories),
        "items": found.result.items,
        "singles": session.singles(found.recipe.ingredients),
    }


def _select(run: RunSettings, scores: ScoreMatrix, progress: Progress) -> Selection:
    selection = run.selector.select(scores)
    progress.say(f"selected {', '.join(selection.ingredients)}")
    write_selection(selection_dict(selection, scores), run.run_dir / "selection.json")
    return selection


def _select_from_table(run: RunSettings, progress: Progress) -> dict[str, Any]:
    """Published scores alone: candidates are names, no folder is opened."""
    scores = run.scores.matrix([c.name for c in run.pool.resolve()], _no_scores)
    return {"selection": selection_dict(_select(run, scores, progress), scores)}


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
            console.print(f"  {name:15} {nearby(run.run_dir / name)}", soft_wrap=True, markup=False)
    if run.out.exists():
        console.print(f"  {'soup':15} {nearby(run.out)}", soft_wrap=True, markup=False)


def nearby(path: Path) -> str:
    """A path as it is shortest from here."""
    absolute = path.absolute()
    return str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else path)


def _no_scores() -> ScoreMatrix:
    raise AssertionError("a published table needs no evaluation")


def _benchmark(run: RunSettings) -> dict[str, str]:
    """Name and note, which the report shows wherever it speaks of the items."""
    return {"name": run.benchmark.label, "note": run.benchmark.note}

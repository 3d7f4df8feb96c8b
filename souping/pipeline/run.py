"""cook(): pool, score, select, search, write, report. One run from candidates to evidence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from souping import planning
from souping import report as reporting
from souping.core.scores import ScoreMatrix
from souping.core.types import LateError, Selection, UserError
from souping.evaluate.benchmark import NoBenchmark, OwnBenchmark
from souping.examples import pantry
from souping.pipeline.merge_only import merge, rebuild
from souping.pipeline.models import free_target
from souping.pipeline.settings import Run
from souping.pipeline.stages import Session
from souping.pipeline.store import Store
from souping.pipeline.upload import check, push
from souping.report.files import selection_dict, trial_rows
from souping.search.loop import Found

__all__ = ["Run", "cook"]
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


def cook(run: Run) -> float | None:
    """Select, search, soup and prove. Returns the objective on the search fold, None after `stop_after=select`."""
    sends = run.upload is not None and not run.plan
    if sends:
        _check_upload(run)
    with ExitStack() as parts:
        for part in (run.evaluator, run.merge, *(entry.evaluator for entry in run.also)):
            if hasattr(part, "close"):  # servers and ranks wait for the next soup until then
                parts.callback(part.close)
        outcome = _stages(run)
    if outcome is None:
        return None
    with _results_stay():
        _show(run, outcome)
        if sends:
            _upload(run)
    found: Found | None = outcome.get("found")
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


def _check_upload(run: Run) -> None:
    """Whoever may not write to the Hub learns it before the run, not after it."""
    assert run.upload is not None
    if run.stop_after:
        raise UserError(f"upload={run.upload.repo} sends a finished soup: leave stop_after={run.stop_after} out")
    check(run.upload)


def _upload(run: Run) -> None:
    assert run.upload is not None
    if not run.out.exists():  # one expert for everything: no soup was written
        print(f"  {'upload':15} nothing to send: there is no soup")
        return
    url = push(run.upload, run.out, run.run_dir / "report.json", run.store_path)
    print(f"  {'upload':15} {url}")


def _stages(run: Run) -> dict[str, Any] | None:
    """What the run came to; None where it was only planned."""
    free_target(run.out)
    if run.recipe or isinstance(run.benchmark, NoBenchmark):
        return {"soup": rebuild(run, run.recipe) if run.recipe else merge(run)}
    _check_benchmark(run)
    if run.plan:
        planning.plan(run)
        return None
    from_table = run.stop_after == "select" and run.scores.published  # asks no item, needs no evaluator's environment
    own = None if from_table else getattr(run.evaluator, "benchmark", None)
    if isinstance(run.benchmark, OwnBenchmark) and own is not None:
        run = replace(run, benchmark=own)
    run.pool.resolve()
    with reporting.Progress() as progress:
        if from_table:
            return _select_from_table(run, progress)
        with Store(run.store_path) as store:
            return _cook(Session.open(run, store, progress))


def _check_benchmark(run: Run) -> None:
    """An evaluator that brings its own items can ask no others (an experiment may have named some)."""
    if hasattr(type(run.evaluator), "benchmark") and not isinstance(run.benchmark, OwnBenchmark):
        name = type(run.evaluator).__name__
        raise UserError(f"evaluator={name} brings its own items and asks no others: add benchmark=own")


def _cook(session: Session) -> dict[str, Any]:
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
        report = serve(session, scores, selection, found)
        return {**report, "found": found}
    finally:
        session.kitchen.close()
        run.tracker.finish(report, run.run_dir)


def _gate(session: Session) -> None:
    """Stop (or warn) where a single model is not what it was expected to be, before anything else costs time."""
    found = session.check_singles()
    if found is None:
        return
    if not found.failed:
        session.progress.say(found.sentence())
        return
    session.progress.show(reporting.gate_table({"gate": found.as_dict()}))
    if found.mode == "error":
        raise UserError(f"{found.sentence()}\nnothing is lost: what was evaluated is in the store (gate=warn goes on)")
    session.notes.append(found.sentence())


def serve(session: Session, scores: ScoreMatrix, selection: Selection, found: Found) -> dict[str, Any]:
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
        card = reporting.card({**parts, "search": _search_scores(session, found)})
        session.progress.stage("writing the soup")
        session.write(found, card)
    if session.gate is not None:
        parts["gate"] = session.gate.as_dict()
    evidence = session.evidence(scores, selection, found)
    if session.sides:
        evidence["also"] = session.also(selection, found)
    report = {**parts, **evidence, "stability": session.stability(scores), "cost": session.cost(len(trials))}
    reporting.write(report, trials, run.run_dir)
    reporting.write_trials(trials, report, run.run_dir / "trials.csv")
    return report


def write_search(run: Run, found: Found, selection: Selection) -> dict[str, Any]:
    """What a run that stops after its search leaves: the trials and the recipe."""
    parts = {"selection": selection_dict(selection), "recipe": found.recipe.as_dict()}
    reporting.write_trials(trial_rows(found.trials, selection), parts, run.run_dir / "trials.csv")
    reporting.put(run.run_dir / "recipe.json", reporting.as_json(parts["recipe"]).encode())
    return {**parts, "found": found}


def recipe_line(found: Found) -> str:
    return " + ".join(f"{w:.3g} {n}" for n, w in zip(found.recipe.ingredients, found.recipe.weights, strict=True))


def _search_scores(session: Session, found: Found) -> dict[str, Any]:
    """The search fold's scores, which the model card shows: the report fold is still closed when it is written."""
    session.progress.stage("ingredients on the search fold")
    return {
        "objective": found.result.objective,
        "categories": dict(found.result.categories),
        "items": found.result.items,
        "singles": session.singles(found.recipe.ingredients),
    }


def _select(run: Run, scores: ScoreMatrix, progress: reporting.Progress) -> Selection:
    selection = run.selector.select(scores)
    progress.say(f"selected {', '.join(selection.ingredients)}")
    reporting.write_selection(selection_dict(selection, scores), run.run_dir / "selection.json")
    return selection


def _select_from_table(run: Run, progress: reporting.Progress) -> dict[str, Any]:
    """Published scores alone: candidates are names, no folder is opened."""
    scores = run.scores.matrix([c.name for c in run.pool.resolve()], _no_scores)
    return {"selection": selection_dict(_select(run, scores, progress), scores)}


def _show(run: Run, outcome: dict[str, Any]) -> None:
    """The end of a run on standard output: the rows, and where everything lies."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=110)
    if "soup" not in outcome:
        console.print(reporting.table(outcome))
    if outcome.get("also"):
        console.print(reporting.also_table(outcome))
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


def _benchmark(run: Run) -> dict[str, str]:
    """Name and note. The pantry's items say everywhere what they are not."""
    own = Path(run.benchmark.path or "").resolve().parent == Path(pantry.__file__).parent
    return {"name": "pantry", "note": pantry.NOTE} if own else {"name": run.benchmark.title, "note": ""}

"""Run with stages, from candidates to evidence: walk the schedule, then write down what it came to."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from souping.analysis.intervals import ItemTable
from souping.analysis.significance import shrunken
from souping.core.files import nearby, put, said
from souping.core.types import Json, LateError, Selection, UserError, digest, number, texts
from souping.pipeline.checks import complaints, flat_categories, not_measured
from souping.pipeline.samples import write_samples
from souping.pipeline.settings import RunSettings
from souping.pipeline.stages import RunStages, select
from souping.pipeline.store import Store
from souping.report.files import as_json, selection_dict, trial_rows, write_report, write_trials
from souping.report.progress import Progress
from souping.search.loop import SearchResult
from souping.trackers import GuardedTracker

TRIED = "tried.json"


def perform(run: RunSettings) -> tuple[dict[str, Any], SearchResult | None]:
    """What the run came to: the parts of its report, and the search's outcome where there was one."""
    if run.selects_from_table:
        return _select_from_table(run), None
    run = replace(run.with_items(), tracker=GuardedTracker(run.tracker))
    run.pool.resolve()
    with Progress() as progress, Store(run.store_path) as store:
        return _walk(RunStages.open(run, store, progress))


def _walk(stages: RunStages) -> tuple[dict[str, Any], SearchResult | None]:
    run = stages.run
    run.tracker.start(run.config, run.run_dir)
    report: dict[str, Any] | None = None
    try:
        stages.schedule.walk(stages)
        assert stages.selection is not None
        if stages.outcome is None:
            write_samples(stages)
            return {"selection": selection_dict(stages.selection, stages.scores)}, None
        if run.stop_after == "search":
            write_samples(stages)
            return write_search(run, stages.outcome, stages.selection, _tried(stages)), stages.outcome
        report, trials = stages.whole_report()
        write_trials(trials, report, run.run_dir / "trials.csv")
        write_report(report, trials, run.run_dir, run.made)
        write_samples(stages)
        stages.replace_card(report)
        return report, stages.outcome
    except (UserError, OSError) as error:
        if stages.frozen is None:
            raise
        raise LateError(f"{said(error)}\nthe soup is written: {nearby(stages.frozen)}") from error
    finally:
        stages.workers.close()
        stages.pool.close()
        run.tracker.finish(report, run.run_dir, stages.frozen)


def write_search(
    run: RunSettings, outcome: SearchResult, selection: Selection, tried: Mapping[str, Json]
) -> dict[str, Any]:
    """What a run that stops after its search leaves: the trials, the recipe, and what a multirun compares."""
    parts = {"selection": selection_dict(selection), "recipe": outcome.recipe.as_dict()}
    write_trials(trial_rows(outcome.trials, selection), parts, run.run_dir / "trials.csv")
    put(run.run_dir / "recipe.json", as_json(parts["recipe"]).encode())
    put(run.run_dir / TRIED, as_json(tried).encode())
    return parts


def _tried(stages: RunStages) -> dict[str, Json]:
    """What each group of the search fold adds to the score of each soup that was tried on all of it."""
    assert stages.outcome is not None
    outcome, items = stages.outcome, stages.folds.items["search"]
    asks = {trial.recipe.id: (trial.recipe, trial.handler) for trial in outcome.trials if trial.whole}
    asks |= {outcome.recipe.id: (outcome.recipe, outcome.handler)}
    table = ItemTable.of(items, stages.run.objective)
    share = (table.coefficients / np.bincount(table.categories))[table.categories]
    scores = {name: stages.evaluation.found(recipe, items, handler) for name, (recipe, handler) in asks.items()}
    sums = {n: np.bincount(table.groups, share * s.values) for n, s in scores.items() if len(s.items) == len(items)}
    fold = digest([[[i.fingerprint, i.group] for i in items], table.coefficients.tolist()])
    return {"fold": fold, "winner": outcome.recipe.id, "soups": {n: s.round(6).tolist() for n, s in sums.items()}}


def finish_lines(sweep_dir: Path, jobs: Sequence[Mapping[str, Json]], flags: Sequence[str]) -> list[str]:
    """The best job of a multirun that stopped after the search, and the one command that reports on it.

    Its score is shrunk towards all soups that any job tried on the same items. `flags` are those of the command line.
    """
    done = [job for job in jobs if (sweep_dir / str(job["run_dir"]) / TRIED).is_file()]
    if not done:
        return []
    best = max(done, key=lambda job: number(job["objective"]) or 0.0)
    tables = {str(job["job"]): json.loads((sweep_dir / str(job["run_dir"]) / TRIED).read_text()) for job in done}
    own, soups = tables[str(best["job"])], dict[str, list[float]]()
    for table in tables.values():
        soups |= table["soups"] if table["fold"] == own["fold"] else {}
    score = shrunken(np.array(list(soups.values())), list(soups).index(own["winner"]))
    words = [word.replace("${hydra:job.num}", str(best["job"])) for word in texts(best, "overrides")]
    command = ["python", "-m", "souping", *flags, *(w for w in words if not w.lstrip("+").startswith("stop_after="))]
    note = f"job {best['job']}, about {100 * score:.1f} % on new items (shrunk towards the {len(soups)} soups tried)"
    return [f"  {'best':16} {note}", f"  {'finish':16} {shlex.join(command)}"]


def _select_from_table(run: RunSettings) -> dict[str, Any]:
    """Published scores alone: candidates are names, no folder is opened."""
    for complaint in complaints(run, {}, ()):
        raise complaint
    with Progress() as progress:
        scores = run.scores.matrix([c.name for c in run.pool.resolve()], not_measured)
        for warning in flat_categories(scores):
            progress.say(f"note: {warning}")
        return {"selection": selection_dict(select(run, scores, progress), scores)}

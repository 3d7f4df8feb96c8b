"""The library: a run, a merge and a selection from Python, without configuration files and without Hydra."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from souping.analysis import Analysis
from souping.analysis.chance import selected
from souping.analysis.correlation import pearson
from souping.analysis.front import FrontPoint
from souping.analysis.guards import read_guards
from souping.answers.evaluation import LocalExecutor
from souping.checkpoints.pool import Pool
from souping.core.fields import Count, FolderName, Seed, check_arguments, pick
from souping.core.files import OUTPUTS, errors_told, expanded
from souping.core.folders import discard, missing_folders, numbered_folders
from souping.core.protocols import (
    BenchmarkItems,
    Evaluator,
    Objective,
    Optimiser,
    Selector,
    Tracker,
)
from souping.core.reading import read, to_json
from souping.core.scores import Mean, MeasuredScores, read_table
from souping.core.types import (
    Item,
    JsonObject,
    LateError,
    ScoreMatrix,
    Selection,
    UserError,
    frozen,
)
from souping.evaluate.benchmark import Benchmark, ListedItems
from souping.evaluate.generate import LocalEvaluator
from souping.logs.log_scores import LogScores
from souping.merge.backend import MergeBackend
from souping.merge.local import LocalMerge
from souping.report.cells import Section
from souping.report.content import Report, RouterFile, VerdictSummary
from souping.report.progress import EARLY, logged, say
from souping.report.render import section_html
from souping.report.sections import headline, kicker, losses
from souping.report.tables import experts, summary_table
from souping.runs.analyses import default_analyses
from souping.runs.checks import not_measured
from souping.runs.settings import Goals, MinGain, RunSettings, StopAfter
from souping.search.adaptive import Adaptive
from souping.search.points import Fixed, Uniform
from souping.selection import SoCE
from souping.soups.settings import STORE, MergeSettings
from souping.trackers import NoTracker

Models = Sequence[str | Path] | Mapping[str, str | Path]
"""Folders or names on the Hub, or {name: either}."""
ItemSource = str | Path | Sequence[Item] | Sequence[JsonObject] | BenchmarkItems
"""A file or data set (`benchmark.path`), items, or a benchmark."""


@frozen
class RunTrial:
    """Soup of the search with its objective on the items of the search split that it answered, which may be a part."""

    weights: Mapping[str, float]
    objective: float


@dataclass(frozen=True, kw_only=True, repr=False)
class RunReport(Report):
    """A report that a notebook shows as a table."""

    def __repr__(self) -> str:
        return f"Report({headline(self)})"

    def _repr_html_(self) -> str:
        lines = [headline(self), *losses(self)]
        grid = summary_table(self) if self.rows else experts(self)
        return section_html(Section(kicker(self), tuple(lines), grids=(grid,)))


@dataclass(frozen=True)
class RunResult:
    """Outcome of a run. `report` is what report.json says, as far as the run went; `trials` are the soups it tried.

    Scores are those of report.json. `soup` is the winner's folder, None if none was written. `front` has the points
    that no other beats in all goals of `pareto`: weights, and each goal's mean with its band. `router` is router.json,
    None if the run ended before its test.
    """

    out: Path
    report: RunReport
    trials: tuple[RunTrial, ...]
    soup: Path | None
    front: tuple[FrontPoint, ...] = ()
    router: RouterFile | None = None

    @property
    def verdict(self) -> VerdictSummary:
        """What may be claimed; `claim` and `sentence` are empty without a report."""
        return self.report.verdict or read(VerdictSummary, {})

    @property
    def weights(self) -> dict[str, float]:
        """{ingredient: weight}"""
        recipe = self.report.recipe
        if recipe is None:
            return {}
        weights = [weight or 0.0 for weight in recipe.weights]
        return dict(zip(recipe.ingredients, weights, strict=True))

    def __repr__(self) -> str:
        sentence = self.verdict.sentence or f"{len(self.trials)} soups tried, no report."
        mixed = " + ".join(f"{weight:g} {name}" for name, weight in self.weights.items())
        return f"RunResult({sentence} Soup: {mixed or 'none'}. Files: {self.out})"


@errors_told()
def run(
    *,
    candidates: Models,
    items: ItemSource,
    selector: Selector | None = None,
    optimiser: Optimiser | None = None,
    objective: Objective | None = None,
    evaluator: Evaluator | None = None,
    merge: MergeBackend | None = None,
    tracker: Tracker | None = None,
    out: str | Path | None = None,
    name: FolderName = "souping",
    seed: Seed = 0,
    stop_after: StopAfter | None = None,
    dry_run: Count | None = None,
    min_gain: MinGain | None = None,
    guard: float | Mapping[str, float | str] | None = None,
    guard_baseline: str | None = None,
    pareto: Goals | None = None,
    analysis: Mapping[str, Analysis] | None = None,
    store: str | Path = STORE,
) -> RunResult:
    """Select, search, soup and report, as `python -m souping` does with the same components.

    `items` is a file or data set, `Item`s, dicts with the keys of a line of such a file, or a benchmark. `out` is the
    run's directory (default: a new one under `outputs/`), with the soup in `out/soup` and the log in `out/run.log`.
    `store` keeps every answer, so that a second run evaluates nothing. `dry_run` is the most items per category and
    split that are evaluated. `guard` and `pareto` are losses and goals as on the command line. `analysis` is {name:
    analysis}, by default those that need no further answers. Defaults: SoCE with Pearson's correlation, the adaptive
    search, the mean over categories, `LocalEvaluator`, `LocalMerge`.

    Raises:
        UserError: what the command line would refuse, in the same words.
    """
    check_arguments(run, {key: value for key, value in locals().items() if key != "items"})
    objective = objective or Mean()
    if analysis is None:
        analysis = default_analyses()
    folder = _new_folder(
        expanded(out or OUTPUTS / name / time.strftime("%Y-%m-%d_%H-%M-%S"), "out")
    )
    settings = RunSettings(
        **_common(
            candidates,
            merge,
            tracker,
            name,
            seed,
            Path(store),
            run_dir=folder,
            out=folder / "soup",
        ),
        optimiser=optimiser or Adaptive(),
        benchmark=_benchmark(items),
        scores=MeasuredScores(),
        selector=selector or _soce(objective),
        objective=objective,
        evaluator=evaluator or LocalEvaluator(),
        executor=LocalExecutor(),
        stop_after=stop_after,
        dry_run=dry_run,
        min_gain=min_gain,
        guard=read_guards(guard),
        guard_baseline=guard_baseline,
        pareto=pareto or (),
        analyses=analysis,
        command=f"souping.run(name={name!r}, out={str(folder)!r}, seed={seed})",
    )
    return _perform(settings)


def _new_folder(out: Path) -> Path:
    """`out` if it is absent or empty, else the first such folder with a number at its end: nothing is overwritten."""
    for folder in numbered_folders(out):
        if not folder.exists() or not any(folder.iterdir()):
            break
    if folder != out:
        say(f"note: {out} is not empty: this run is in {folder}")
    return folder


def _perform(settings: RunSettings) -> RunResult:
    """Take the steps of a run, with a log in its folder. A run that is refused before its first step leaves no file."""
    from souping.runs.execute import check_settings, perform, written_soup

    check_settings(settings)
    new_folders = missing_folders(settings.run_dir)
    settings.run_dir.mkdir(parents=True, exist_ok=True)
    try:
        with logged(settings.run_dir, settings.command):
            outcome = perform(settings)
    # After a late error there are results to keep.
    except LateError:
        raise
    except (UserError, OSError):
        # A folder that was there before keeps all of its files.
        discard(settings.run_dir, new_folders, EARLY if new_folders else ())
        raise
    trials = []
    for trial in outcome.trials:
        objective = settings.evaluator.unit.raw(trial.result.objective)
        trials.append(RunTrial(weights=trial.recipe.shares, objective=objective))
    soup = written_soup(settings, outcome.report)
    report = read(RunReport, to_json(outcome.report))
    report = replace(report, analyses=outcome.report.analyses)
    return RunResult(settings.run_dir, report, tuple(trials), soup, outcome.front, outcome.router)


@errors_told()
def soup(
    candidates: Models,
    weights: Sequence[float] | Mapping[str, float] | None = None,
    *,
    out: str | Path,
    merge: MergeBackend | None = None,
    store: str | Path = STORE,
) -> Path:
    """Write the weighted average of checkpoints as a complete folder; returns `out`.

    `weights` has one weight per candidate, in order, or is {name: weight}; without it all are equal. They sum to 1;
    those below 0 or above 1 extrapolate.

    Raises:
        UserError: the candidates do not fit each other, or `out` is there already.
    """
    check_arguments(soup, locals())
    from souping.soups import merge_only

    folder = expanded(out, "out")
    merge_only.free_target(folder)
    common = _common(
        candidates,
        merge,
        tracker=None,
        name="merge",
        seed=0,
        store=Path(store),
        run_dir=folder.parent,
        out=folder,
    )
    if isinstance(weights, Mapping):
        weights = _in_order(weights, [candidate.name for candidate in common["pool"].resolve()])
    optimiser: Optimiser = Uniform() if weights is None else Fixed(weights=list(weights))
    merge_only.merge(MergeSettings(**common, optimiser=optimiser))
    return folder


@errors_told()
def select(scores: str | Path | ScoreMatrix, selector: Selector | None = None) -> Selection:
    """Ingredients by scores: SoCE with Pearson's correlation by default.

    `scores` may be a CSV `model,<category>,...`, or a folder with one log of evaluations per model.

    Raises:
        UserError: they cannot be read, have too few models or categories, or `selector` chose what it must not.
    """
    check_arguments(select, locals())
    if not isinstance(scores, ScoreMatrix):
        scores = _scores_at(expanded(scores))
    return selected(selector or _soce(Mean()), scores)


def _scores_at(path: Path) -> ScoreMatrix:
    """Published scores from a CSV file, or from a folder of logs."""
    if not path.exists():
        raise UserError(f"table={path}: no such file or folder")
    if not path.is_dir():
        return read_table(path)
    logs = LogScores(path=str(path))
    return logs.matrix(logs.models, not_measured)


def _in_order(weights: Mapping[str, float], names: Sequence[str]) -> list[float]:
    """The weights of all models in the order of `names`, 0 for a model without one (UserError for an unknown model)."""
    for name in weights:
        pick(name, names, "weights: model")
    return [float(weights.get(name, 0.0)) for name in names]


def _common(
    models: Models,
    merge: MergeBackend | None,
    tracker: Tracker | None,
    name: str,
    seed: int,
    store: Path,
    run_dir: Path,
    out: Path,
) -> dict[str, Any]:
    """Arguments of `SoupSettings` that runs and merges share, with the defaults of `run` and `soup`."""
    store = expanded(store, "store")
    if isinstance(models, Mapping):
        pool = Pool(candidates=[{"name": key, "path": str(path)} for key, path in models.items()])
    else:
        pool = Pool(candidates=[str(path) for path in models])
    return {
        "pool": pool,
        "merge": merge or LocalMerge(),
        "tracker": tracker or NoTracker(),
        "name": name,
        "seed": seed,
        "store_path": store,
        "run_dir": run_dir,
        "out": out,
        # What a report's provenance keeps.
        "config": {"name": name, "seed": seed, "store": str(store.absolute())},
    }


def _benchmark(items: ItemSource) -> BenchmarkItems:
    """The benchmark of a file's path or a list of items; a benchmark as it is (UserError for anything else).

    This replaces the check of the argument `items` by its annotation.
    """
    if isinstance(items, Sequence) and not isinstance(items, str):
        return ListedItems(listed=list(items))
    if isinstance(items, str | Path):
        return Benchmark(path=str(items))
    if not isinstance(items, BenchmarkItems):
        raise UserError(f"items={items!r:.60} must be a file, a list of items, or a benchmark")
    return items


def _soce(objective: Objective) -> SoCE:
    return SoCE(correlation=pearson, objective=objective)

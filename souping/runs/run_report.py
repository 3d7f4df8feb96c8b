"""Report of a run: what it says once the soup is frozen, and what its last step adds."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from souping.analysis.alternatives import best_by_category
from souping.analysis.guards import GUARDS, GuardsResult
from souping.analysis.stability import stability
from souping.answers.evaluation import Evaluation
from souping.checkpoints.folder import CAUSAL
from souping.core.files import write_atomically
from souping.core.reading import read, to_json
from souping.core.system import provenance
from souping.core.types import Recipe, ScoreMatrix, Selection
from souping.core.unit import Unit
from souping.evaluate.benchmark import Splits
from souping.merge import CandidatePool
from souping.merge.soup_files import CARD
from souping.report import sections, tables
from souping.report.analysis_results import AnalysisResult
from souping.report.cells import markdown_table
from souping.report.content import (
    BenchmarkLabel,
    ObjectiveSummary,
    Report,
    Route,
    RouterFile,
    RunCost,
    SearchUse,
    SplitSizes,
)
from souping.report.format import escape_markdown
from souping.report.recipe import RecipeSummary, recipe_summary
from souping.report.run_files import search_summary, selection_summary
from souping.runs.goals import guard_checks, possible_guards
from souping.runs.settings import RunSettings
from souping.runs.state import Reported, Searched
from souping.runs.steps import Steps
from souping.runs.verdict import power_summary
from souping.search.loop import SearchResult
from souping.soups.card import soup_card


def stopped_report(
    settings: RunSettings,
    selection: Selection,
    scores: ScoreMatrix | None = None,
    recipe: Recipe | None = None,
    analyses: Mapping[str, AnalysisResult] | None = None,
) -> Report:
    """The report of a run that ended before the test split."""
    unit = settings.evaluator.unit
    report = Report(
        name=settings.name,
        unit=unit,
        selection=selection_summary(unit, selection, scores),
        recipe=None if recipe is None else recipe_summary(recipe),
    )
    # As a reader of its file gets it: NaN becomes None. Analyses are so already.
    return replace(read(Report, to_json(report)), analyses=analyses or None)


def frozen_report(settings: RunSettings, splits: Splits, searched: Searched) -> Report:
    """The choices of a run, before anything is measured on the test split."""
    unit = settings.evaluator.unit
    selected = searched.selected
    power = selected.power
    return Report(
        name=settings.name,
        unit=unit,
        benchmark=BenchmarkLabel(name=settings.benchmark.label, note=settings.benchmark.note),
        dry_run=settings.dry_run,
        objective=_objective(settings, searched.winner),
        selection=selection_summary(unit, selected.selection, selected.scores),
        recipe=recipe_summary(searched.winner.recipe),
        splits=read(SplitSizes, splits.counts()),
        items=splits.content,
        power=None if power is None else power_summary(power, unit),
        expected_check=selected.expected_check,
    )


def _objective(settings: RunSettings, winner: SearchResult) -> ObjectiveSummary:
    """The objective with its coefficients, and the winner's objective on the search split."""
    objective = settings.objective
    coefficients = {}
    if objective.linear:
        names = list(winner.result.categories)
        weights = objective.coefficients(names).tolist()
        coefficients = dict(zip(names, weights, strict=True))
    return ObjectiveSummary(
        name=objective.name,
        coefficients=coefficients,
        search=settings.evaluator.unit.raw(winner.result.objective),
    )


def final_report(steps: Steps, state: Reported, warnings: Sequence[str]) -> Report:
    """The report after the last step, without the run's cost, as a reader of report.json gets it: NaN becomes None."""
    settings = steps.settings
    scores = state.searched.selected.scores
    # Only plans, and states that are read from a finished run's files, lack them.
    assert scores is not None
    report = replace(
        state.report,
        warnings=tuple(warnings),
        stability=stability(scores, settings.selector),
        engine=settings.evaluator.hosting.engine_version or None,
        provenance=provenance(settings.command, settings.config),
    )
    if summary := state.searched.winner.summary:
        report = replace(report, search=search_summary(settings.evaluator.unit, summary))
    analyses = dict(state.analyses)
    if guards := _guards(steps, state):
        analyses[GUARDS] = guards
    return replace(read(Report, to_json(report)), analyses=analyses)


def router_file(steps: Steps, state: Reported) -> RouterFile:
    """The routes of the report's router, with those of categories that the test split lacks."""
    selected = state.searched.selected
    # Only plans, and states that are read from a finished run's files, lack them.
    assert selected.scores is not None
    ingredients = selected.selection.ingredients
    routes = best_by_category(ingredients, selected.scores, steps.categories)
    routes |= state.frozen.choices.routes
    fingerprints = {model.name: model.fingerprint for model in steps.pool.candidates}
    unit = steps.settings.evaluator.unit
    return RouterFile(
        routes=with_scores(routes, selected.scores, fingerprints, unit),
        dry_run=steps.settings.dry_run,
        unit=unit,
    )


def with_scores(
    routes: Mapping[str, str], scores: ScoreMatrix, fingerprints: Mapping[str, str], unit: Unit
) -> dict[str, Route]:
    """Routes {category: candidate} with the candidates' fingerprints and scores.

    `scores` are those on the select split. Published ones have no items, and are left out.
    """
    measured = {name: of_items.by_category() for name, of_items in (scores.items or {}).items()}
    table = {}
    for category, name in routes.items():
        score: float | None = None
        n: int | None = None
        # The select split may lack a category too.
        if category in measured.get(name, {}):
            values = measured[name][category]
            score = unit.raw(float(values.mean()))
            n = len(values)
        table[category] = Route(model=name, fingerprint=fingerprints[name], score=score, n=n)
    return table


def _guards(steps: Steps, state: Reported) -> GuardsResult | None:
    """What the guards changed in the search, and whether they held on the test split; None if there are none."""
    searched = state.searched
    admission = searched.selected.admission
    if admission is None or searched.guards is None:
        return None
    verdict = state.report.verdict
    checks = guard_checks(
        admission,
        searched.winner.recipe,
        steps.single(admission.against),
        state.measured,
        claim=verdict.claim if verdict else "",
        look=state.look,
        possible=possible_guards(steps),
    )
    return replace(searched.guards, checks=tuple(checks))


def run_cost(
    settings: RunSettings, winner: SearchResult, evaluations: Iterable[Evaluation], lost: int
) -> RunCost:
    """Answers and seconds that a run took. `evaluations` are those of its own and of extra benchmarks, and `lost` is
    the number of workers that died."""
    evaluated = 0
    reused = 0
    for evaluation in evaluations:
        evaluated += evaluation.evaluated
        reused += evaluation.reused
    trials = len(winner.trials)
    search = None
    if trials:
        search = replace(read(SearchUse, to_json(winner.cost)), soups=trials)
    return RunCost(
        evaluated_items=evaluated,
        reused_items=reused,
        trials=trials,
        search=search,
        seconds=round(time.monotonic() - settings.started, 3),
        lost_workers=lost or None,
    )


def card(report: Report, folder: Path = Path("."), base: str = "", loader: str = CAUSAL) -> str:
    """The card of a run's soup (`card.soup_card`).

    `report` may have only what is known when the soup is written. All numbers on a card are from the test split: a card
    that is written before the test has none.
    """
    recipe = report.recipe or read(RecipeSummary, {})
    benchmark = sections.benchmark(report)
    return soup_card(recipe, report.rebuild, folder, base, benchmark, _evidence(report), loader)


def replace_card(folder: Path, first: str, report: Report, pool: CandidatePool) -> None:
    """Put a report on the soup's card, unless somebody changed the card from the `first` one, which has no numbers."""
    path = folder / CARD
    if not path.exists() or path.read_bytes() == first.encode():
        write_atomically(path, card(report, folder.resolve(), pool.base_repo, pool.loader).encode())


def _evidence(report: Report) -> list[str]:
    """Paragraphs with the verdict and the test split's tables, as Markdown; none before there is a report."""
    if not report.rows:
        return []
    if report.dry_run:
        return ["## Result", escape_markdown(sections.headline(report))]
    text = (
        "Percent correct on the test split with 95 % intervals. Neither the choice of the ingredients nor that of the "
        "weights saw these items."
    )
    if report.selection is not None and report.selection.published:
        text += " The ingredients were chosen by published scores; what those were measured on, the choice has seen."
    lines = [sections.headline(report), *sections.report_findings(report)]
    words = [escape_markdown(line) for line in lines]
    grids = [tables.scores(report)]
    if report.comparisons:
        grids.append(tables.comparisons(report))
    return ["## Result", *words, text, *map(markdown_table, grids)]

"""Analyse step of a run: calls its analyses with their scores, and keeps the result of each.

They read answers from the store. What an analysis lacks is evaluated before.
"""

from __future__ import annotations

import traceback
from collections import ChainMap
from collections.abc import Mapping, Sequence
from pkgutil import resolve_name
from typing import Any

from souping.analysis import Analysis, NotEstimableError, RunScores
from souping.analysis.correlation import pearson
from souping.analysis.front import FRONT, FrontResult
from souping.analysis.guards import GUARDS, GuardsResult
from souping.answers.evaluation import Evaluation
from souping.core.parsing import read_yaml
from souping.core.reading import read, to_json
from souping.core.system import conf_folder
from souping.core.text import first_line, named, safe
from souping.core.types import (
    TOLERANCE,
    ItemScores,
    Recipe,
    Record,
    Split,
    UserError,
)
from souping.report.analysis_results import AnalysisResult, UserResult
from souping.runs.state import Reported
from souping.runs.steps import Stage, Steps


def missing_answers(evaluation: Evaluation, stage: Stage) -> list[int]:
    """Number of answers to the stage's items that each of its models lacks [M]; stored answers of any block count."""
    counts = []
    for model in stage.models:
        missing = evaluation.missing_answers(model, stage.items, any_block=True)
        counts.append(sum(missing.values()))
    return counts


def run_scores(
    steps: Steps,
    evaluation: Evaluation,
    state: Reported,
    soups: Sequence[Recipe],
) -> RunScores:
    """All item scores of a run that the store has, including those of the `soups` that an analysis needs.

    Nothing is evaluated here.
    """
    settings = steps.settings
    singles = [steps.single(name) for name in steps.pool.names]
    searched = state.searched
    trials = [trial.recipe for trial in searched.winner.trials]
    models = [*singles, *trials, *soups]
    # {recipe id: scores} of models that answered all items of the split, and of those that answered a part.
    search, parts = evaluation.all_stored_scores(models, steps.splits["search"])

    def first_answers(recipe: Recipe, split: Split) -> Mapping[str, Record]:
        """{item id: the first stored answer of a model}"""
        items = state.items if split == "test" else steps.splits[split]
        answers = evaluation.stored_answers(recipe, items)
        return {name: records[0] for name, records in answers.items()}

    # Soups whose weights sum to one, each once. Task arithmetic also tries others.
    mixtures = {recipe.id: recipe for recipe in trials if abs(sum(recipe.weights) - 1) < TOLERANCE}
    return RunScores(
        soups=steps.soups(searched),
        trials=tuple(mixtures.values()),
        objective=settings.objective,
        # Pearson's also after a selector that uses no correlation.
        correlation=settings.selector.deciding_correlation or pearson,
        metric=searched.selected.selection.metric or "pearson",
        search=search,
        parts=parts,
        test=state.stored or {},
        answers=evaluation.answers_per_item,
        read=first_answers,
        unit=settings.evaluator.unit,
    )


def report_scores(evaluation: Evaluation, state: Reported) -> dict[str, ItemScores]:
    """{recipe id: scores} of the report's models that answered all test items; models with the same content once."""
    if not state.items:
        return {}
    recipes = {row.recipe.fingerprint: row.recipe for row in state.contenders}
    scores = {}
    for recipe in recipes.values():
        if not evaluation.missing_answers(recipe, state.items):
            scores[recipe.id] = evaluation.stored_scores(recipe, state.items)
    return scores


# ---------------------------------------------------------------- one analysis


def shipped_analyses() -> dict[str, type[Analysis]]:
    """{choice of `analysis`: its class} of this package, by the choices' files."""
    classes = {}
    for path in sorted((conf_folder() / "analysis").glob("*.yaml")):
        classes[path.stem] = resolve_name(read_yaml(path.read_bytes())["_target_"])
    return classes


def default_analyses() -> dict[str, Analysis]:
    """{choice of `analysis`: the analysis} that a run makes by default."""
    defaults = read_yaml((conf_folder() / "config.yaml").read_bytes())["defaults"]
    groups = ChainMap(*(entry for entry in defaults if isinstance(entry, dict)))
    classes = shipped_analyses()
    return {name: classes[name]() for name in groups["analysis"]}


def analysis_results() -> dict[str, type[AnalysisResult]]:
    """{key of a report's `analyses`: class of its result}, of this package's choices and of a run's goals."""
    results = {name: kind.result_type() for name, kind in shipped_analyses().items()}
    return {**results, FRONT: FrontResult, GUARDS: GuardsResult}


def analyse(analysis: Analysis, scores: RunScores) -> AnalysisResult:
    """The result of one analysis. No analysis ends a run: if it fails, `not_estimable` or `failed` says why."""
    try:
        data = analysis.analyse(scores)
        if isinstance(data, AnalysisResult):
            # As from a file: NaN becomes None.
            return read(type(data), to_json(data))
        # A user's analysis returns a mapping.
        if _has_user_form(data):
            return read(UserResult, data)
        what = (
            "must give a mapping: `sentences` a list, `tables` a list of {header, rows} "
            "with rows as wide as the header"
        )
        return UserResult(failed=f"{named(analysis)} {what}")
    except NotEstimableError as error:
        return UserResult(not_estimable=str(error))
    except UserError as error:
        return UserResult(failed=str(error))
    except Exception as error:  # user code may raise anything, and the run's results are worth more
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{last.filename}:{last.lineno}"
        return UserResult(failed=safe(f"{type(error).__name__}: {first_line(error)} ({where})"))


def _has_user_form(data: Mapping[str, Any]) -> bool:
    """Whether data has the form of a `UserResult`: lists of sentences and tables, with rows as wide as the header."""
    try:
        tables = data.get("tables", [])
        # All values that must be lists.
        lists = [data.get("sentences", []), tables]
        for table in tables:
            lists += [table["rows"], *table["rows"]]
            if any(len(row) != len(table["header"]) for row in table["rows"]):
                return False
    except (AttributeError, KeyError, TypeError):
        return False
    return all(isinstance(value, list | tuple) for value in lists)

"""Checks of a run's settings against each other and its items: one list, for the run and for its plan.

A run stops at the first complaint, before any work; a plan shows them all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from souping.checkpoints import hub
from souping.core.files import near_folder
from souping.core.scores import CAUSES
from souping.core.text import listed, named, shown
from souping.core.types import CONSTANT, FOLDS, Candidate, Fold, Item, SearchSpace, UserError
from souping.evaluate.folds import Folds, limit_folds, shares_of, split_folds
from souping.pipeline.baseline_gate import check_names
from souping.pipeline.models import OpenPool
from souping.search.loop import check_budget
from souping.selection import check_drop

if TYPE_CHECKING:
    from souping.core.protocols import Evaluator
    from souping.core.types import ScoreMatrix
    from souping.pipeline.settings import RunSettings


def complaints(
    run: RunSettings, folds: Mapping[Fold, Sequence[Item]], asked: Sequence[tuple[Evaluator, Sequence[Item]]]
) -> Iterator[UserError]:
    """What does not fit, in the order of a run. `asked` are the evaluators with their items; `folds` and items are
    empty where the items cannot be had."""
    for check in _checks(run, folds, asked):
        try:
            check()
        except UserError as error:
            yield error


def _checks(
    run: RunSettings, folds: Mapping[Fold, Sequence[Item]], asked: Sequence[tuple[Evaluator, Sequence[Item]]]
) -> Iterator[Callable[[], None]]:
    for _, items in asked[1:]:  # the run's own were checked when they were cut
        yield partial(check_texts, items)
    names = [candidate.name for candidate in run.pool.resolve()]
    categories = list(dict.fromkeys(item.category for fold in FOLDS for item in folds.get(fold, ())))
    yield partial(check_names, run.expected, names, categories)
    if categories:
        yield partial(_check_objective, run, categories)
        if run.stop_after != "select":
            yield partial(check_budget, run.optimiser, len(folds["search"]))
    yield partial(_check_selector, run, names, categories)
    yield partial(_check_search, run, len(names))
    yield partial(_check_analyses, run)
    if run.scores.published and run.stop_after != "select":
        yield partial(_check_folders, run.pool.resolve())
    for evaluator, _ in asked:
        yield partial(evaluator.check, names)


def cut_folds(run: RunSettings, items: Sequence[Item]) -> Folds:
    """Folds of the run's items, whose texts are checked first: halves of characters have no hash (UserError)."""
    check_texts(items)
    folds = split_folds(items, two=run.scores.published, shares=shares_of(run.benchmark.folds))
    return folds if run.limit is None else limit_folds(folds, run.limit)


def check_texts(items: Sequence[Item]) -> None:
    """Refuse halves of characters, which JSON can write and nothing can store or show.

    Raises:
        UserError: the message names the item.
    """
    for item in items:
        try:
            texts = [item.id, item.category, item.group, item.prompt, item.answer, item.tools]
            json.dumps(texts, ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError as error:
            half = shown(error.object[error.start])
            raise UserError(f"item {shown(item.id)}: its text holds half a character ({half}): mend it") from None


def _check_objective(run: RunSettings, categories: Sequence[str]) -> None:
    found = run.objective.coefficients(categories)
    plain = isinstance(found, np.ndarray) and found.dtype.kind in "fiu" and found.shape == (len(categories),)
    if not (plain and np.isfinite(found).all() and found.min() >= 0 and found.max() > 0):
        raise UserError(f"objective {named(run.objective)} must give {len(categories)} coefficients >= 0, one above")
    if not isinstance(run.objective.name, str):
        raise UserError(f"objective {named(run.objective)}: its name is a text")


def _check_selector(run: RunSettings, names: Sequence[str], categories: Sequence[str]) -> None:
    """Rows and categories are the published table's, or the candidates and the items' own."""
    if run.scores.published:
        scores = run.scores.matrix(names, not_measured)
        check_drop(run.selector.drop, scores.categories)
        run.selector.check(len(scores.models), len(scores.candidates), len(scores.categories) - len(run.selector.drop))
    elif categories:
        check_drop(run.selector.drop, categories)
        run.selector.check(len(names), len(names), len(categories) - len(run.selector.drop))


def _check_search(run: RunSettings, candidates: int) -> None:
    """Refuse a search that has no point for as many ingredients as will be selected, where that number is known."""
    sizes = run.selector.sizes(candidates)
    if len(sizes) == 1 and sizes[0] > 1 and run.stop_after != "select":
        run.optimiser.describe(sizes[0])


def _check_folders(candidates: Sequence[Candidate]) -> None:
    """Refuse names of a published table in place of models: whoever has no weights wants the selection alone."""
    for candidate in candidates:
        if not candidate.path.is_dir() and hub.parse(candidate.path) is None:
            raise UserError(
                f"candidate {candidate.name}: {candidate.path} is not a folder{near_folder(candidate.path)}; "
                "without weights, stop_after=select selects from the table alone"
            )


def _check_analyses(run: RunSettings) -> None:
    """Refuse an analysis that is nothing without a base model, where there is none."""
    for name, analysis in run.analyses.items():
        if analysis.base == "required" and not run.uses_base:
            what = (
                "works without merge.overrides only"
                if run.merge.base
                else "needs the base model: set merge.base=FOLDER"
            )
            raise UserError(f"analysis={name}, as it is set, {what}")


def check_tokenizers(pool: OpenPool, asked: Sequence[tuple[Evaluator, Sequence[Item]]]) -> None:
    """Refuse candidates whose tokenizer an evaluator cannot ask its items with.

    Raises:
        UserError: a candidate has no tokenizer, or its tokenizer no chat template where items are messages.
    """
    pool.pool.check_tokenizers()
    for name in pool.names:
        folder = pool.pool.tokenizer_folder(pool.recipe({name: 1.0}))
        for evaluator, items in asked:
            try:
                evaluator.check_tokenizer(folder, items)
            except UserError as error:
                raise UserError(f"candidate {name}: {error}") from error


def check_soups(run: RunSettings, pool: OpenPool) -> None:
    """Refuse a search without a point, and soups that the merge backend cannot make, where no selection would help.

    Raises:
        UserError: so it is for every number of ingredients that the selector may pick.
    """
    if run.stop_after == "select":
        return
    errors: list[UserError] = []
    for size in run.selector.sizes(len(pool.names)):
        try:
            _check_soup(run, pool, pool.names[:size])
        except UserError as error:
            errors.append(error)
        else:
            return
    if errors:
        raise errors[-1]


def _check_soup(run: RunSettings, pool: OpenPool, ingredients: tuple[str, ...]) -> None:
    """Points and plan of a soup of these; which candidates they are does not matter."""
    size = len(ingredients)
    if size < 2:
        return
    points = run.optimiser.known_points(size)
    if points is None and run.optimiser.count(size) == 1:
        run.optimiser.start(SearchSpace(ingredients=ingredients, candidates=pool.names), run.seed)
    pool.pool.plan(pool.uniform(ingredients))


def run_notes(run: RunSettings, pool: OpenPool | None, folds: Folds | None) -> list[str]:
    """What a reader of the report must know before anything is evaluated; a plan may lack the pool or the items."""
    notes = [*pool.warnings] if pool is not None else []
    if folds is not None:
        categories = list(dict.fromkeys(item.category for fold in FOLDS for item in folds.items[fold]))
        notes += [*folds.notes, *run.objective.notes(categories)]
    if pool is not None:
        notes += run.evaluator.pool_notes(pool.folders)
        items = [item for fold in FOLDS for item in folds.items[fold]] if folds is not None else []
        folder = pool.pool.tokenizer_folder(pool.recipe({pool.names[0]: 1.0}))
        notes += run.evaluator.prompt_notes(folder, items)
    return notes


def not_measured() -> ScoreMatrix:
    raise AssertionError("a published table needs no evaluation")


def flat_categories(scores: ScoreMatrix) -> list[str]:
    """Warnings of categories in which all models score the same: nothing can be chosen by them."""
    alike: dict[str, list[str]] = {}
    for name in scores.constant:
        value = float(scores.values[0, scores.categories.index(name)])
        alike.setdefault(_all_alike(value, scores), []).append(name)
    return [_flat(how, names) for how, names in alike.items()]


def _flat(how: str, names: Sequence[str]) -> str:
    if len(names) == 1:
        told = "which tells no model from another: it is left out of the selection and stays in the objective"
        return f"category {names[0]}: {how}, {told}"
    told = "which tells no model from another: they are left out of the selection and stay in the objective"
    return f"{len(names)} categories, {listed(names)}: {how}, {told}"


def _all_alike(value: float, scores: ScoreMatrix) -> str:
    if value <= CONSTANT:
        return f"every model fails all of it{'' if scores.published else f' ({CAUSES})'}"
    every = f"all {len(scores.models)} models score {100 * value:.1f} %"
    return "every model solves all of it" if value >= 1 - CONSTANT else every

"""Everything that a run refuses before any work, in its order. A run stops at the first error, a plan shows them all.

`refusals` needs the settings and the items, `check_pool` the candidates' headers and tokenizers. Settings that
contradict each other are refused before both, by `execute.check_settings`.
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
from souping.pipeline.merge_only import check_kept
from souping.pipeline.models import OpenPool
from souping.pipeline.settings import RunSettings
from souping.search.loop import check_budget
from souping.selection import check_drop

if TYPE_CHECKING:
    from souping.core.protocols import Evaluator
    from souping.core.types import ScoreMatrix

Asked = Sequence[tuple["Evaluator", Sequence[Item]]]
"""Evaluators with their items, the run's own first."""


def refusals(settings: RunSettings, folds: Mapping[Fold, Sequence[Item]], asked: Asked) -> Iterator[UserError]:
    """What does not fit. `folds` and items are empty if the items are not available."""
    for check in _checks(settings, folds, asked):
        try:
            check()
        except UserError as error:
            yield error


def _checks(settings: RunSettings, folds: Mapping[Fold, Sequence[Item]], asked: Asked) -> Iterator[Callable[[], None]]:
    candidates = settings.pool.resolve()
    names = [candidate.name for candidate in candidates]
    categories = list(dict.fromkeys(item.category for fold in FOLDS for item in folds.get(fold, ())))
    for _, items in asked[1:]:  # the run's own were checked when the folds were cut
        yield partial(check_texts, items)
    yield partial(check_names, settings.expected, names, categories)
    if categories:
        yield partial(_check_objective, settings, categories)
        if settings.stop_after != "select":
            yield partial(check_budget, settings.optimiser, len(folds["search"]))
    yield partial(_check_selector, settings, names, categories)
    yield partial(_check_search, settings, len(names))
    yield partial(_check_analyses, settings)
    if settings.scores.published and settings.stop_after != "select":
        yield partial(_check_folders, candidates)
    for evaluator, _ in asked:
        yield partial(evaluator.check, names)


def check_pool(settings: RunSettings, pool: OpenPool, asked: Asked) -> None:
    """Refuse candidates that cannot answer the items, soups that cannot be made, and a foreign soup in `out`."""
    check_tokenizers(pool, asked)
    _check_soups(settings, pool)
    check_kept(settings, pool)


def cut_folds(settings: RunSettings, items: Sequence[Item]) -> Folds:
    """Folds of the run's items (UserError: a text cannot be stored, or a category is too small)."""
    check_texts(items)
    folds = split_folds(items, two=settings.scores.published, shares=shares_of(settings.benchmark.folds))
    return folds if settings.limit is None else limit_folds(folds, settings.limit)


def check_texts(items: Sequence[Item]) -> None:
    """Refuse unpaired surrogates, which JSON can write and nothing can store or show (UserError)."""
    for item in items:
        try:
            texts = [item.id, item.category, item.group, item.prompt, item.answer, item.tools]
            json.dumps(texts, ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError as error:
            half = shown(error.object[error.start])
            raise UserError(f"item {shown(item.id)} contains an unpaired surrogate ({half}): remove it") from None


def _check_objective(settings: RunSettings, categories: Sequence[str]) -> None:
    objective = settings.objective
    made = objective.coefficients(categories)
    plain = isinstance(made, np.ndarray) and made.dtype.kind in "fiu" and made.shape == (len(categories),)
    if not (plain and np.isfinite(made).all() and made.min() >= 0 and made.max() > 0):
        raise UserError(f"objective {named(objective)} must give {len(categories)} coefficients >= 0, one above")
    if not isinstance(objective.name, str):
        raise UserError(f"objective {named(objective)}: its name must be a text")


def _check_selector(settings: RunSettings, names: Sequence[str], categories: Sequence[str]) -> None:
    """Rows and categories are the published table's, or the candidates and the items' own."""
    selector = settings.selector
    models = candidates = len(names)
    if settings.scores.published:
        scores = settings.scores.matrix(names, not_measured)
        categories, models, candidates = scores.categories, len(scores.models), len(scores.candidates)
    if categories:
        check_drop(selector.drop, categories)
        selector.check(models, candidates, len(categories) - len(selector.drop))


def _check_search(settings: RunSettings, candidates: int) -> None:
    """Refuse a search that has no point for the number of ingredients, if that number is known."""
    sizes = settings.selector.sizes(candidates)
    if len(sizes) == 1 and sizes[0] > 1 and settings.stop_after != "select":
        settings.optimiser.describe(sizes[0])


def _check_folders(candidates: Sequence[Candidate]) -> None:
    """Refuse names of a published table in place of models."""
    for candidate in candidates:
        if not candidate.path.is_dir() and hub.parse(candidate.path) is None:
            raise UserError(
                f"candidate {candidate.name}: {candidate.path} is not a folder{near_folder(candidate.path)}; "
                "without weights, stop_after=select selects from the table alone"
            )


def _check_analyses(settings: RunSettings) -> None:
    """Refuse an analysis that requires a base model, if there is none."""
    for name, analysis in settings.analyses.items():
        if analysis.base == "required" and not settings.uses_base:
            needs = "needs the base model: set merge.base=FOLDER"
            raise UserError(
                f"analysis={name}, as it is set, "
                f"{'works without merge.overrides only' if settings.merge.base else needs}"
            )


def check_tokenizers(pool: OpenPool, asked: Asked) -> None:
    """Refuse candidates without a tokenizer, or without a chat template if items are messages (UserError)."""
    pool.pool.check_tokenizers()
    for name in pool.names:
        folder = pool.pool.tokenizer_folder(pool.recipe({name: 1.0}))
        for evaluator, items in asked:
            try:
                evaluator.check_tokenizer(folder, items)
            except UserError as error:
                raise UserError(f"candidate {name}: {error}") from error


def _check_soups(settings: RunSettings, pool: OpenPool) -> None:
    """Refuse a search without a point, and soups that cannot be made, if that holds for every possible selection."""
    sizes = () if settings.stop_after == "select" else settings.selector.sizes(len(pool.names))
    errors: list[UserError] = []
    for size in sizes:
        try:
            _check_soup(settings, pool, pool.names[:size])
        except UserError as error:
            errors.append(error)
        else:
            return
    if errors:
        raise errors[-1]


def _check_soup(settings: RunSettings, pool: OpenPool, ingredients: tuple[str, ...]) -> None:
    """Points and plan of a soup of these; which candidates they are does not matter."""
    size = len(ingredients)
    if size < 2:
        return
    if settings.optimiser.known_points(size) is None and settings.optimiser.count(size) == 1:
        settings.optimiser.start(SearchSpace(ingredients=ingredients, candidates=pool.names), settings.seed)
    pool.pool.plan(pool.uniform(ingredients))


def run_notes(settings: RunSettings, pool: OpenPool | None, folds: Folds | None) -> list[str]:
    """What a reader of the report must know before anything is evaluated; a plan may lack the pool or the items."""
    notes = [*pool.warnings] if pool is not None else []
    items = [item for fold in FOLDS for item in folds.items[fold]] if folds is not None else []
    if folds is not None:
        notes += [*folds.notes, *settings.objective.notes(list(dict.fromkeys(item.category for item in items)))]
    if pool is not None:
        notes += settings.evaluator.pool_notes(pool.folders)
        folder = pool.pool.tokenizer_folder(pool.recipe({pool.names[0]: 1.0}))
        notes += settings.evaluator.prompt_notes(folder, items)
    return notes


def not_measured() -> ScoreMatrix:
    raise AssertionError("a published table needs no evaluation")


def flat_categories(scores: ScoreMatrix) -> list[str]:
    """Warnings about categories in which all models score the same: nothing can be chosen by them."""
    alike: dict[str, list[str]] = {}
    for name in scores.constant:
        value = float(scores.values[0, scores.categories.index(name)])
        alike.setdefault(_same_score(value, scores), []).append(name)
    return [_flat(how, names) for how, names in alike.items()]


def _flat(how: str, names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"category {names[0]}: {how}, so it is left out of the selection; it stays in the objective"
    return (
        f"{len(names)} categories, {listed(names)}: {how}, so they are left out of the selection; "
        "they stay in the objective"
    )


def _same_score(value: float, scores: ScoreMatrix) -> str:
    if value <= CONSTANT:
        return f"every model fails all of it{'' if scores.published else f' ({CAUSES})'}"
    if value >= 1 - CONSTANT:
        return "every model solves all of it"
    return f"all {len(scores.models)} models score {100 * value:.1f} %"

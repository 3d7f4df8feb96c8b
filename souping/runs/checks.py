"""Everything that a run refuses before any work: settings, items, candidates, and a machine that is too small.

A run stops at the first error, a plan shows them all. `refusals` needs the settings and the items, `check_pool` the
candidates' headers and tokenizers. Settings that contradict each other are refused before both, by
`execute.check_settings`.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from souping.answers.evaluation import Evaluation, EvaluatorWorker
from souping.answers.store import Store
from souping.checkpoints.encodings import COMPARED_TEXTS
from souping.core.fields import pick
from souping.core.protocols import Evaluator, Workers
from souping.core.text import named, shown
from souping.core.types import (
    CONSTANT,
    OWN_BENCHMARK,
    SPLITS,
    Candidate,
    Item,
    Names,
    ScoreMatrix,
    SearchSpace,
    Split,
    UserError,
    frozen,
)
from souping.core.unit import POINTS, Unit
from souping.evaluate.benchmark import Splits, limit_splits, make_splits, shares_of
from souping.report.progress import Progress
from souping.runs.asking import FileWorkers, OrderedSearch
from souping.runs.requirements import check_machine, check_soup
from souping.runs.settings import RunSettings
from souping.runs.state import MIXED_ROWS, ExtraBenchmark
from souping.runs.steps import extra_benchmarks
from souping.search.loop import RecipeEvaluator, check_budget
from souping.selection import check_excluded
from souping.soups.models import RunPool, open_worker

EvaluatorItems = Sequence[tuple[Evaluator, Sequence[Item]]]
"""Evaluators with their items, the run's own first."""
LIKELY_CAUSES = "are answers truncated, is the scorer wrong, do chat models get plain text in place of messages?"
"""What to look at if every model fails."""


def refusals(
    settings: RunSettings, splits: Mapping[Split, Sequence[Item]], evaluators: EvaluatorItems
) -> Iterator[UserError]:
    """Errors of settings, items and candidates' names that do not fit each other, in the order of the checks.

    `splits` and items are empty if the items are not available.
    """
    for check in _checks(settings, splits, evaluators):
        try:
            check()
        except UserError as error:
            yield error


def _checks(
    settings: RunSettings, splits: Mapping[Split, Sequence[Item]], evaluators: EvaluatorItems
) -> Iterator[Callable[[], None]]:
    """The checks of a run that need no pool, as functions that raise a UserError."""
    candidates = settings.pool.resolve()
    names = [candidate.name for candidate in candidates]
    run_items = itertools.chain.from_iterable(splits.get(split, ()) for split in SPLITS)
    categories = list(dict.fromkeys(item.category for item in run_items))
    # The run's own items were checked when the splits were cut.
    for _, items in evaluators[1:]:
        yield partial(check_texts, items)
    yield partial(_check_source, settings)
    if settings.stop_after != "select":
        yield partial(_check_names, names)
    yield partial(_check_expected, settings, names, categories)
    if categories:
        yield partial(_check_objective, settings, categories)
        yield partial(_check_goals, settings, categories, candidates)
        if settings.stop_after != "select":
            yield partial(check_budget, settings.optimiser, len(splits["search"]))
    yield partial(_check_selector, settings, names, categories)
    yield partial(_check_search, settings, tuple(names))
    for evaluator, _ in evaluators:
        yield partial(evaluator.prompts.check, names)


def check_pool(settings: RunSettings, pool: RunPool, evaluators: EvaluatorItems) -> None:
    """Refuse candidates that cannot answer the items, soups that cannot be made, and weights that the pool refuses
    (UserError)."""
    settings.pool.check_weights(pool.weights_in)
    check_tokenizers(pool, evaluators)
    shape = pool.merge_pool.adapter_shape
    if shape is not None:
        for evaluator, _ in evaluators:
            evaluator.hosting.check_adapters(shape)

    def check(ingredients: Names) -> None:
        pool.merge_pool.plan(pool.uniform(ingredients))

    # Whether soups can be made with the numbers of ingredients that the selector may choose.
    _check_sizes(settings, pool.names, check)


def cut_splits(settings: RunSettings, items: Sequence[Item]) -> Splits:
    """The select, search and test splits of the run's items, or a few items of each for a dry run.

    Raises:
        UserError: a text cannot be stored, or a category is too small.
    """
    check_texts(items)
    # Published scores select, so no items have to.
    splits = make_splits(
        items, two=settings.scores.published, shares=shares_of(settings.benchmark.splits)
    )
    if settings.dry_run is None:
        return splits
    return limit_splits(splits, settings.dry_run)


def check_texts(items: Sequence[Item]) -> None:
    """Refuse unpaired surrogates, which JSON can write and nothing can store or show (UserError)."""
    for item in items:
        try:
            texts = [item.id, item.category, item.group, item.prompt, item.answer, item.tools]
            json.dumps(texts, ensure_ascii=False, default=str).encode()
        except UnicodeEncodeError as error:
            surrogate = shown(error.object[error.start])
            raise UserError(
                f"item {shown(item.id)} contains an unpaired surrogate ({surrogate}): remove it"
            ) from None


def _check_names(names: Sequence[str]) -> None:
    """Refuse candidates with the name of a mixed model's row: that row would replace the candidate's scores."""
    for name in names:
        if name in MIXED_ROWS:
            raise UserError(
                f"pool.candidates: {name} is the name of a row of the report: rename the candidate with "
                "{name: NAME, path: PATH}"
            )


def _check_objective(settings: RunSettings, categories: Sequence[str]) -> None:
    """Refuse a user's objective whose coefficients or name are not as the protocol says."""
    objective = settings.objective
    weights = objective.coefficients(categories)
    is_numeric = (
        isinstance(weights, np.ndarray)
        and weights.dtype.kind in "fiu"
        and weights.shape == (len(categories),)
    )
    if not (is_numeric and np.isfinite(weights).all() and weights.min() >= 0 and weights.max() > 0):
        raise UserError(
            f"objective {named(objective)} must give {len(categories)} coefficients of at least 0, and one above 0"
        )
    if not isinstance(objective.name, str):
        raise UserError(f"objective {named(objective)}: its name must be a text")


def _check_goals(
    settings: RunSettings, categories: Sequence[str], candidates: Sequence[Candidate]
) -> None:
    """Refuse goals, guards and scaled soups that the run cannot have with its optimiser, merge and categories."""
    # An optimiser with one soup of two ingredients does not search.
    if settings.pareto and settings.optimiser.count(2) == 1:
        raise UserError(f"pareto needs a search: {named(settings.optimiser)} evaluates one soup")
    if settings.optimiser.scales and settings.merge.method != "task_arithmetic":
        raise UserError(
            "optimiser.scales needs merge.method=task_arithmetic and merge.base_model=FOLDER"
        )
    # Both refuse unknown names.
    settings.goals_on(categories)
    settings.guards_on(categories)
    if settings.guard_reference(candidates) and not settings.guard:
        raise UserError(
            f"guard_baseline={settings.guard_baseline} needs guards, as in guard={{safety: 3}}"
        )


def _check_source(settings: RunSettings) -> None:
    """Refuse published scores, which are fractions of 1, for a run with scores of another unit."""
    if not settings.scores.published:
        return
    unit = settings.evaluator.unit
    if not unit.higher_is_better or unit.scale != POINTS.scale:
        raise UserError(
            f"scores={named(settings.scores)} has percent, this evaluator {unit.name}: use scores=evaluate"
        )


def _check_expected(settings: RunSettings, names: Sequence[str], categories: Sequence[str]) -> None:
    """Refuse names in `expected` that the pool or the benchmark does not have."""
    for expectation in settings.expected:
        candidate = pick(expectation.candidate, names, "expected: candidate")
        if expectation.category is not None and categories:
            pick(expectation.category, categories, f"expected.{candidate}: category")


def _check_selector(settings: RunSettings, names: Sequence[str], categories: Sequence[str]) -> None:
    """Refuse a selector that cannot choose from this number of models and categories, or excludes unknown categories.

    Models and categories are those of the published table or, without one, the candidates and the items' categories.
    """
    selector = settings.selector
    models = len(names)
    candidates = len(names)
    # A table may have rows of other models too.
    if settings.scores.published:
        scores = settings.scores.matrix(names, not_measured)
        categories = scores.categories
        models = len(scores.models)
        candidates = len(scores.candidates)
    if categories:
        check_excluded(selector.exclude, categories)
        selector.check(models, candidates, len(categories) - len(selector.exclude))


def _check_search(settings: RunSettings, names: Names) -> None:
    """Refuse a search that has no point, or not the right number of weights, or weights below 0."""
    if settings.optimiser.extrapolates:
        raise UserError(
            "optimiser.weights has a weight below 0, which a run does not take: write the soup with `souping merge`, "
            "and add it to pool.candidates"
        )

    def check(ingredients: Names) -> None:
        optimiser = settings.optimiser
        size = len(ingredients)
        # Raises if the optimiser has no point for this number of ingredients.
        optimiser.describe(size)
        # An optimiser of one soup refuses wrong weights when it starts.
        if optimiser.known_points(size) is None and optimiser.count(size) == 1:
            optimiser.start(SearchSpace(ingredients=ingredients, candidates=names), settings.seed)

    _check_sizes(settings, names, check)


def _check_sizes(settings: RunSettings, names: Names, check: Callable[[Names], None]) -> None:
    """Raise the last error of `check` if it refuses every possible number of ingredients.

    It is called with the first candidates: which ones they are does not matter.
    """
    # No soup will be made.
    if settings.stop_after == "select":
        return
    last_error: UserError | None = None
    for size in settings.selector.sizes(len(names)):
        # One ingredient makes no soup.
        if size == 1:
            return
        try:
            check(names[:size])
            return
        except UserError as error:
            last_error = error
    if last_error is not None:
        raise last_error


def check_tokenizers(pool: RunPool, evaluators: EvaluatorItems) -> None:
    """Refuse candidates without a tokenizer, or without a chat template if items are messages (UserError)."""
    # Tokenizers are compared on COMPARED_TEXTS texts at most, from all benchmarks.
    all_items = list(itertools.chain.from_iterable(items for _, items in evaluators))
    texts = [item.text for item in all_items[:: len(all_items) // COMPARED_TEXTS + 1]]
    pool.merge_pool.check_tokenizers(texts)
    for name in pool.names:
        folder = pool.merge_pool.tokenizer_folder(pool.recipe({name: 1.0}))
        for evaluator, items in evaluators:
            try:
                evaluator.prompts.check_tokenizer(folder, items)
            except UserError as error:
                raise error.at(f"candidate {name}") from error


def run_notes(settings: RunSettings, pool: RunPool | None, splits: Splits | None) -> list[str]:
    """What a reader of the report must know before anything is evaluated; a plan may lack the pool or the items."""
    notes = []
    if pool is not None:
        notes += pool.warnings
        notes += pool.similarity.warnings if pool.similarity else []
    notes += settings.pool.notes
    items: list[Item] = []
    if splits is not None:
        for split in SPLITS:
            items += splits.items[split]
        notes += splits.notes
        notes += settings.objective.notes(list(dict.fromkeys(item.category for item in items)))
    if pool is not None:
        base = settings.base_candidate(pool.candidates)
        for name, analysis in settings.analyses.items():
            remarks = analysis.notes(settings.merge.base_model, base)
            notes += [f"{name}: {remark}" for remark in remarks]
        notes += settings.evaluator.prompts.pool_notes(pool.folders)
        # The tokenizer of the first candidate is an example.
        folder = pool.merge_pool.tokenizer_folder(pool.recipe({pool.names[0]: 1.0}))
        notes += settings.evaluator.prompts.prompt_notes(folder, items)
    return notes


def not_measured() -> ScoreMatrix:
    raise AssertionError("a published table needs no evaluation")


def flat_categories(unit: Unit, scores: ScoreMatrix) -> list[str]:
    """Warnings about categories in which all models score the same: nothing can be chosen by them."""
    notes = []
    for name in scores.constant:
        # All models have the score of the first.
        value = float(scores.values[0, scores.categories.index(name)])
        # The score is not zero.
        if abs(value) > CONSTANT:
            models = "both" if len(scores.models) == 2 else f"all {len(scores.models)}"
            how = f"{models} models score {unit.level(unit.raw(value))}"
        elif scores.published:
            how = "every model fails all of it"
        else:
            how = f"every model fails all of it ({LIKELY_CAUSES})"
        notes.append(
            f"category {name}: {how}, so it is left out of the selection; it stays in the objective"
        )
    return notes


@frozen
class Prepared:
    """What a run works with. Its evaluators have what they take from the candidates' files.

    `benchmarks` are {extra benchmark: its content}, `evaluations` {benchmark: evaluation}, including OWN_BENCHMARK,
    which the search reaches through `search_evaluation`.
    """

    settings: RunSettings
    splits: Splits
    pool: RunPool
    benchmarks: Mapping[str, ExtraBenchmark]
    workers: Workers
    evaluations: Mapping[str, Evaluation]
    search_evaluation: RecipeEvaluator


def prepare_run(settings: RunSettings, store: Store, progress: Progress) -> Prepared:
    """Check a run, open its pool, and start its workers.

    Raises:
        UserError: settings, items, pool and machine do not fit each other.
    """
    items = settings.benchmark.items()
    splits = cut_splits(settings, items)
    extra = extra_benchmarks(settings.extra_benchmarks, settings.evaluator, settings.dry_run)
    pairs = [(settings.evaluator, items)]
    pairs += [(benchmark.evaluator, benchmark.items) for benchmark in extra]
    # A run reports the first error alone.
    for error in refusals(settings, splits.items, pairs):
        raise error
    check_machine(settings, [evaluator for evaluator, _ in pairs])

    pool = RunPool.fetch(
        settings.pool.resolve(),
        settings.merge,
        store,
        aside=progress.aside,
        further_models=settings.pool.further_models,
    )
    check_pool(settings, pool, pairs)
    check_soup(settings, pool.merge_pool.soup_bytes)

    # Evaluators take templates and tokenizers from the pool.
    settings = replace(settings, evaluator=pool.bound(settings.evaluator))
    benchmarks = {}
    evaluators = {OWN_BENCHMARK: settings.evaluator}
    for benchmark in extra:
        evaluator = pool.bound(benchmark.evaluator)
        benchmarks[benchmark.name] = replace(benchmark, evaluator=evaluator)
        evaluators[benchmark.name] = evaluator
    workers: Workers
    jobs: FileWorkers | None = None
    if settings.executor.evaluates_here:
        workers = _start_workers(settings, pool, evaluators, store)
    else:
        jobs = FileWorkers(settings, pool, evaluators, progress, splits.content)
        workers = jobs
    evaluations = {}
    for name, evaluator in evaluators.items():
        serve = pool.serving(evaluator)
        evaluations[name] = Evaluation(
            store,
            evaluator,
            serve,
            ends=pool.eos_token_ids,
            advance=progress.advance,
            workers=workers,
            benchmark=name,
        )
    search_evaluation: RecipeEvaluator = evaluations[OWN_BENCHMARK]
    if jobs is not None:
        search_evaluation = OrderedSearch(evaluations[OWN_BENCHMARK], jobs)
    return Prepared(
        settings=settings,
        splits=splits,
        pool=pool,
        benchmarks=benchmarks,
        workers=workers,
        evaluations=evaluations,
        search_evaluation=search_evaluation,
    )


def _start_workers(
    settings: RunSettings, pool: RunPool, evaluators: Mapping[str, Evaluator], store: Store
) -> Workers:
    """The executor's workers: in this process, or in others that open the pool again."""
    elsewhere = partial(
        open_worker, Path.cwd(), pool.models, settings.merge, evaluators, dict(store.hashes)
    )
    here = EvaluatorWorker(pool.serving_all(evaluators))
    return settings.executor.start(here, elsewhere)

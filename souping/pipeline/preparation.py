"""Preparation of a run: everything that can be refused is refused here, before a model is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from souping.core.protocols import Evaluator, Workers
from souping.core.types import Candidate, frozen
from souping.evaluate.benchmark import Folds
from souping.pipeline.asking import FilesExecutor, FileWorkers, OrderedEvaluation
from souping.pipeline.checks import check_machine, check_pool, cut_folds, refusals
from souping.pipeline.evaluation import Evaluation, EvaluatorWorker, open_worker
from souping.pipeline.models import OpenPool
from souping.pipeline.settings import RunSettings
from souping.pipeline.state import ExtraBenchmark
from souping.pipeline.steps import extra_benchmarks
from souping.pipeline.store import Store
from souping.report.progress import Progress


@frozen
class Prepared:
    """What a run works with. Its evaluators have what they take from the candidates' files.

    `evaluations` are {extra benchmark: evaluation}, the run's own under an empty name.
    """

    settings: RunSettings
    folds: Folds
    pool: OpenPool
    benchmarks: Mapping[str, ExtraBenchmark]
    workers: Workers
    evaluations: Mapping[str, Evaluation]


def prepare(settings: RunSettings, store: Store, progress: Progress) -> Prepared:
    """Check a run, open its pool, and start its workers.

    Raises:
        UserError: settings, items, pool and machine do not fit each other.
    """
    items = settings.benchmark.items()
    folds = cut_folds(settings, items)
    extra = extra_benchmarks(settings.also, settings.evaluator, settings.limit)
    pairs = [(settings.evaluator, items)]
    pairs += [(benchmark.evaluator, benchmark.items) for benchmark in extra]
    for error in refusals(settings, folds.items, pairs):
        raise error
    check_machine(settings, [evaluator for evaluator, _ in pairs])

    candidates = settings.pool.resolve()
    more: Sequence[Candidate] = ()
    if settings.pool.trajectory is not None:
        more = settings.pool.trajectory.models
    pool = OpenPool.fetch(candidates, settings.merge, store, aside=progress.aside, more=more)
    check_pool(settings, pool, pairs)

    settings = replace(settings, evaluator=pool.bound(settings.evaluator))
    benchmarks = {}
    evaluators = {"": settings.evaluator}
    for benchmark in extra:
        evaluator = pool.bound(benchmark.evaluator)
        benchmarks[benchmark.name] = replace(benchmark, evaluator=evaluator)
        evaluators[benchmark.name] = evaluator
    workers: Workers
    kind: type[Evaluation] = Evaluation
    if isinstance(settings.executor, FilesExecutor):
        workers = FileWorkers(
            settings, settings.executor, pool, evaluators, progress, folds.content
        )
        kind = OrderedEvaluation
    else:
        workers = _start_workers(settings, pool, evaluators, store)
    evaluations = {}
    for name, evaluator in evaluators.items():
        evaluations[name] = kind(
            store,
            evaluator,
            pool.serving(evaluator),
            pool.eos_token_ids,
            progress.advance,
            workers,
            benchmark=name,
        )
    return Prepared(
        settings=settings,
        folds=folds,
        pool=pool,
        benchmarks=benchmarks,
        workers=workers,
        evaluations=evaluations,
    )


def _start_workers(
    settings: RunSettings, pool: OpenPool, evaluators: Mapping[str, Evaluator], store: Store
) -> Workers:
    remote = partial(
        open_worker, Path.cwd(), pool.models, settings.merge, evaluators, dict(store.hashes)
    )
    return settings.executor.start(EvaluatorWorker(pool.serving_all(evaluators)), remote)

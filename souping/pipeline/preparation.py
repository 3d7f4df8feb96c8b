"""Preparation of a run: everything that can be refused is refused here, before a model is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from souping.core.protocols import Evaluator, Workers
from souping.core.types import frozen
from souping.evaluate.benchmark import Folds
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
    pairs = [(settings.evaluator, items), *((one.evaluator, one.items) for one in extra)]
    for error in refusals(settings, folds.items, pairs):
        raise error
    check_machine(settings, [evaluator for evaluator, _ in pairs])

    candidates = settings.pool.resolve()
    trajectory = settings.pool.trajectory
    more = trajectory.models if trajectory else ()
    pool = OpenPool.fetch(candidates, settings.merge, store, aside=progress.aside, more=more)
    check_pool(settings, pool, pairs)

    settings = replace(settings, evaluator=pool.bound(settings.evaluator))
    bound = [replace(one, evaluator=pool.bound(one.evaluator)) for one in extra]
    benchmarks = {benchmark.name: benchmark for benchmark in bound}
    evaluators = {"": settings.evaluator}
    evaluators |= {name: benchmark.evaluator for name, benchmark in benchmarks.items()}
    workers = _start_workers(settings, pool, evaluators, store)
    evaluations = {}
    for name, evaluator in evaluators.items():
        serve = pool.serving(evaluator)
        ends = pool.eos_token_ids
        evaluations[name] = Evaluation(
            store, evaluator, serve, ends, progress.advance, workers, name
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
    served = {name: (one, pool.serving(one)) for name, one in evaluators.items()}
    remote = partial(
        open_worker, Path.cwd(), pool.models, settings.merge, evaluators, dict(store.hashes)
    )
    return settings.executor.start(EvaluatorWorker(served), remote)

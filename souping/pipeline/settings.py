"""Settings of a run: its built parts and root settings."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from souping.analysis import Analysis
from souping.checkpoints.pool import Pool
from souping.core.executor_protocols import Executor
from souping.core.merge_protocols import MergeBackend
from souping.core.protocols import BenchmarkItems, Evaluator, Objective, ScoreSource, Selector, Strategy, Tracker
from souping.core.types import Json, part
from souping.evaluate.benchmark import NoBenchmark, OwnBenchmark, PartOfBenchmark
from souping.pipeline.baseline_gate import Expectation
from souping.pipeline.executors import LocalExecutor
from souping.pipeline.side_benchmarks import SideEntry
from souping.pipeline.upload import Target
from souping.report.sections import quoted

STORE = Path("outputs/store.sqlite")
"""Where a rebuild looks for folders if it is not told another store."""


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Parts of a run and its root settings, as the command line built them.

    `margin` is in percent points: a smaller gain is no reason to soup. `limit` makes it a dry run on so many items a
    category and fold.
    """

    pool: Pool
    benchmark: BenchmarkItems
    scores: ScoreSource
    selector: Selector
    optimiser: Strategy
    objective: Objective
    evaluator: Evaluator
    merge: MergeBackend
    tracker: Tracker
    executor: Executor = field(default_factory=LocalExecutor)
    name: str
    seed: int
    stop_after: str | None
    limit: int | None = None
    recipe: Path | None = None
    plan: bool = False
    throughput: float | None = None
    margin: float = 1.0
    gate: str = "error"
    expected: tuple[Expectation, ...] = ()
    also: tuple[SideEntry, ...] = ()
    analyses: Mapping[str, Analysis] = field(default_factory=dict)
    upload: Target | None = None
    out: Path
    store_path: Path
    run_dir: Path
    config: Mapping[str, Json]
    started: float = field(default_factory=time.monotonic)

    @property
    def rebuild_command(self) -> str:
        """Command that makes the soup in `out` again, run where this run was started."""
        merge = part(self.config, "merge")
        settings = {"recipe": nearby(self.out / "recipe.json"), "out": "rebuilt"}
        if self.store_path != STORE:
            settings["store.path"] = nearby(self.store_path)
        if merge.get("command"):
            settings |= {"merge": "mergekit", "merge.command": str(merge["command"])}
        if not str(merge.get("_target_", "souping.")).startswith("souping."):  # a method of the user's
            settings["merge._target_"] = str(merge["_target_"])
        if merge.get("allow_pickle"):
            settings["merge.allow_pickle"] = "true"
        if merge.get("nonfinite", "error") != "error":
            settings["merge.nonfinite"] = str(merge["nonfinite"])
        given = (shlex.quote(f"{key}={quoted(value)}") for key, value in settings.items())
        return f"python -m souping +experiment=rebuild {' '.join(given)}"

    @property
    def merges_only(self) -> bool:
        """Whether nothing is evaluated: a soup of weights given by hand, or of a recipe."""
        return self.recipe is not None or isinstance(self.benchmark, NoBenchmark)

    @property
    def uses_base(self) -> bool:
        """Whether the base model has to answer too, for an analysis."""
        used = any(analysis.base != "unused" for analysis in self.analyses.values())
        return used and bool(self.merge.base) and not self.merge.overrides

    @property
    def selects_from_table(self) -> bool:
        """Whether published scores alone are asked: no item, no folder and no evaluator is."""
        return self.stop_after == "select" and self.scores.published

    def with_items(self) -> RunSettings:
        """These settings with the evaluator's own items in place of `benchmark=own` (UserError if it cannot be had)."""
        return replace(self, benchmark=items_of(self.evaluator, self.benchmark))


def nearby(path: Path) -> str:
    """A path as it is shortest from here."""
    absolute = path.absolute()
    return str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else path)


def items_of(evaluator: Evaluator, benchmark: BenchmarkItems) -> BenchmarkItems:
    """Benchmark that is asked: the evaluator's own for `benchmark=own`, where it brings one.

    Raises:
        UserError: they cannot be had here.
    """
    if not isinstance(benchmark, OwnBenchmark) or (own := evaluator.benchmark) is None:
        return benchmark
    return PartOfBenchmark(whole=own, exclude=benchmark.exclude) if benchmark.exclude else own

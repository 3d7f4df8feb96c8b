"""A run and its stages: score, select, search, write, report. Each takes what the one before gave."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from souping.analysis.intervals import minimal_detectable
from souping.analysis.stability import stability
from souping.core.scores import ScoreMatrix
from souping.core.types import FOLDS, Fold, Item, ItemScores, Recipe, Selection, Trial, digest
from souping.evaluate.folds import Folds, split_folds
from souping.pipeline.baseline_gate import Gate, check_names, judge
from souping.pipeline.evaluation import Evaluation
from souping.pipeline.evidence import Contender, gather
from souping.pipeline.import_results import adopted_notes
from souping.pipeline.models import OpenPool
from souping.pipeline.requirements import check_installed, check_room
from souping.pipeline.settings import RunSettings
from souping.pipeline.side_benchmarks import SideBenchmark, compare_on, sides
from souping.pipeline.store import Store
from souping.search.loop import SearchResult, check_budget, result_of, search
from souping.selection.selectors import ranking


@dataclass(kw_only=True)
class RunStages:
    """A run with its pool opened, its folds cut and its store at hand."""

    run: RunSettings
    store: Store
    kitchen: OpenPool
    folds: Folds
    evaluation: Evaluation
    progress: Any
    sides: Mapping[str, tuple[SideBenchmark, Evaluation]] = field(default_factory=dict)
    gate: Gate | None = None
    notes: list[str] = field(default_factory=list)
    best: float = 0.0

    @classmethod
    def open(cls, run: RunSettings, store: Store, progress: Any) -> RunStages:
        """Everything that can be refused before a model is loaded is refused here."""
        items = run.benchmark.items()
        folds = split_folds(items, run.benchmark.title, two=run.scores.published)
        categories = list(dict.fromkeys(item.category for item in items))
        run.objective.coefficients(categories)
        names = [c.name for c in run.pool.resolve()]
        check_names(run.expected, names, categories)
        beside_it = sides(run.also, run.evaluator)
        evaluators = [run.evaluator, *(side.evaluator for side in beside_it)]
        if not run.scores.published:
            run.selector.check(len(names), len(names), len(categories))
        for evaluator in evaluators:
            if hasattr(evaluator, "check"):  # before the pool is opened: models of the Hub are fetched there
                evaluator.check(names)
        check_budget(run.optimiser, len(folds.items["search"]))
        check_installed(evaluators)
        check_room(run, evaluators)
        kitchen = OpenPool(run.pool.resolve(), run.merge, run.evaluator, store, progress.aside)
        kitchen.check_tokenizers()
        evaluation = Evaluation(store, run.evaluator, kitchen.serve, progress.advance)
        others = {
            side.name: (side, Evaluation(store, side.evaluator, kitchen.serving(side.evaluator), progress.advance))
            for side in beside_it
        }
        own = run.objective.notes(categories) if hasattr(run.objective, "notes") else []
        notes = [*kitchen.warnings, *folds.notes, *own, *adopted_notes(kitchen, store, run.evaluator)]
        for note in notes:
            progress.say(f"note: {note}")
        return cls(
            run=run,
            store=store,
            kitchen=kitchen,
            folds=folds,
            evaluation=evaluation,
            progress=progress,
            sides=others,
            notes=notes,
        )

    def fold(self, fold: Fold) -> tuple[Item, ...]:
        return self.folds.items[fold]

    def candidates_on(self, fold: Fold) -> dict[str, ItemScores]:
        """{candidate: scores} on a fold."""
        self.progress.stage(f"candidates on the {fold} fold", items=len(self.kitchen.names) * len(self.fold(fold)))
        return {name: self.evaluation.scores(self.single(name), self.fold(fold)) for name in self.kitchen.names}

    def single(self, name: str) -> Recipe:
        return self.kitchen.recipe({name: 1.0})

    def check_singles(self) -> Gate | None:
        """Hold the singles that `expected` names against their figures, on a fold that they are measured on anyway."""
        names = list(dict.fromkeys(one.candidate for one in self.run.expected))
        if not names or self.run.gate == "off":
            return None
        fold: Fold = "search" if self.run.scores.published else "select"
        items = self.fold(fold)
        self.progress.stage(f"gate: singles on the {fold} fold", items=len(names) * len(items))
        scores = {name: self.evaluation.scores(self.single(name), items) for name in names}
        self.gate = judge(self.run.expected, scores, self.run.objective, mode=self.run.gate, fold=fold)
        return self.gate

    def score(self) -> ScoreMatrix:
        """The score matrix that selection sees: measured on the select fold, or published."""
        matrix: ScoreMatrix = self.run.scores.matrix(
            self.kitchen.names, lambda: ScoreMatrix.from_items(self.candidates_on("select"))
        )
        return matrix

    def search(self, selection: Selection) -> SearchResult:
        """The best weights of the ingredients on the search fold. One ingredient needs no search."""
        items, names = self.fold("search"), selection.ingredients
        if len(names) == 1:
            self.progress.say(f"one expert for everything: {names[0]}; there is nothing to soup")
            recipe = self.single(names[0])
            result = result_of(self.evaluation.scores(recipe, items), self.run.objective)
            (handler,) = self.evaluation.handlers(recipe)
            return SearchResult(recipe=recipe, weights=(1.0,), result=result, trials=(), handler=handler)
        optimiser = self.run.optimiser.start(names, self.kitchen.names, self.run.seed)
        smallest = 100 * minimal_detectable(len(self.fold("report")))
        self.progress.say(
            f"{len(self.fold('report'))} report items can show a true difference of about {smallest:.1f} points "
            "(80 % power, where two models differ on 10 % of the items)"
        )
        ways = len(self.evaluation.handlers(self.kitchen.uniform(names)))
        by = f", by each of {ways} handlers" if ways > 1 else ""
        self.progress.say(f"search: {self.run.optimiser.describe(len(names))}, {len(items)} items each{by}")
        count = (self.run.optimiser.count(len(names)) or 0) * ways
        count = min(count, self.run.optimiser.trials or count)
        self.progress.stage("search", items=count * len(items) or None, trials=count or None)
        found = search(
            optimiser,
            self.run.optimiser,
            lambda weights: self.kitchen.recipe(dict(zip(names, weights, strict=True))),
            self.evaluation,
            items,
            self.run.objective,
            self._tell,
        )
        self._freeze(found)
        return found

    def _freeze(self, found: SearchResult) -> None:
        """From here on soups are asked as the winner was."""
        self.evaluation.handler = found.handler
        tried = list(dict.fromkeys(trial.handler for trial in found.trials))
        if len(tried) > 1:
            told = f"the soup is asked by handler {found.handler}; tried on the search fold: {', '.join(tried)}"
            self.notes.append(told)
            self.progress.say(f"note: {told}")

    def _tell(self, trial: Trial) -> None:
        self.best = max(self.best, trial.result.objective)
        self.progress.trial(trial.number, trial.result.objective, self.best)
        self.run.tracker.log(trial)

    def best_single(self) -> str:
        """The candidate that search would have deployed: the best on the search fold, first of equals."""
        scores = self.candidates_on("search")
        totals = {name: round(result_of(s, self.run.objective).objective, 12) for name, s in scores.items()}
        return max(totals, key=lambda name: totals[name])

    def contenders(self, scores: ScoreMatrix, selection: Selection, found: SearchResult) -> list[Contender]:
        """The rows of the report, the soup last."""
        names, chosen = self.kitchen.names, selection.ingredients
        singles = [
            Contender(name=n, kind="ingredient" if n in chosen else "candidate", recipe=self.single(n)) for n in names
        ]
        best = self.best_single()
        rows = [*singles, Contender(name=best, kind="best_single", recipe=self.single(best))]
        rows.append(Contender(name="uniform_all", kind="uniform_all", recipe=self.kitchen.uniform(names)))
        if len(chosen) > 1:
            top = tuple(n for n in names if n in ranking(scores, self.run.objective, False)[: len(chosen)])
            rows.append(
                Contender(name="uniform_selected", kind="uniform_selected", recipe=self.kitchen.uniform(chosen))
            )
            rows.append(Contender(name="uniform_topk", kind="uniform_topk", recipe=self.kitchen.uniform(top)))
        return [*rows, Contender(name="soup", kind="soup", recipe=found.recipe)]

    def evidence(self, scores: ScoreMatrix, selection: Selection, found: SearchResult) -> dict[str, Any]:
        """Open the report fold for the frozen recipe (written to the ledger first) and compare."""
        items = self.fold("report")
        identity = digest([self.run.benchmark.title, [item.fingerprint for item in items]])
        opened = self.store.open_report(identity, self.run.evaluator.fingerprint, found.recipe.fingerprint)
        rows = self.contenders(scores, selection, found)
        recipes = {c.recipe.id: c.recipe for c in rows}
        self.progress.stage("report fold", items=len(recipes) * len(items))
        measured = {key: self.evaluation.scores(recipe, items) for key, recipe in recipes.items()}
        return gather(rows, measured, self.run.objective, selection.ingredients, opened)

    def also(self, selection: Selection, found: SearchResult) -> list[dict[str, Any]]:
        """The frozen soup and its ingredients on all items of every other benchmark."""
        ingredients = {name: self.single(name) for name in selection.ingredients}
        results, asked = [], {str(item.prompt) for fold in FOLDS for item in self.fold(fold)}
        for name, (side, evaluation) in self.sides.items():
            models = len({recipe.id for recipe in (found.recipe, *ingredients.values())})
            self.progress.stage(f"also: {name}", items=models * len(side.items))
            result = compare_on(side, found.recipe, ingredients, partial(evaluation.scores, items=side.items))
            results.append({**result, "shared": sum(str(item.prompt) in asked for item in side.items)})
        return results

    def write(self, found: SearchResult, card: str) -> Path:
        """The winner alone goes to disk, whole or not at all, with its model card."""
        return self.kitchen.write(found.recipe, self.run.out, {"README.md": card})

    def warnings(self, scores: ScoreMatrix) -> list[str]:
        """What a reader of the report must know."""
        if not scores.published:
            return list(self.notes)
        return [*self.notes, "selection saw published scores: the benchmark's own test set chose the ingredients"]

    def stability(self, scores: ScoreMatrix) -> dict[str, Any]:
        self.progress.stage("stability of the selection")
        return stability(scores, self.run.selector)

    def objective(self, found: SearchResult) -> dict[str, Any]:
        names = list(found.result.categories)
        weights = self.run.objective.coefficients(names).tolist()
        return {
            "name": type(self.run.objective).__name__.lower(),
            "coefficients": dict(zip(names, weights, strict=True)),
            "search": found.result.objective,
        }

    def singles(self, names: tuple[str, ...]) -> dict[str, float]:
        """{ingredient: objective on the search fold}, for the model card."""
        items = self.fold("search")
        return {
            n: result_of(self.evaluation.scores(self.single(n), items), self.run.objective).objective for n in names
        }

    def cost(self, trials: int) -> dict[str, Any]:
        evaluations = [self.evaluation, *(evaluation for _, evaluation in self.sides.values())]
        return {
            "evaluated_items": sum(evaluation.evaluated for evaluation in evaluations),
            "reused_items": sum(evaluation.reused for evaluation in evaluations),
            "trials": trials,
            "seconds": round(time.monotonic() - self.run.started, 3),
        }

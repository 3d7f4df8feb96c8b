"""Stages of a run as they are performed: each takes what the one before gave, in the order of the schedule."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from souping.analysis.correlation import few_models
from souping.analysis.significance import Power, power_of
from souping.analysis.stability import stability
from souping.core.executor_protocols import Workers
from souping.core.files import put
from souping.core.protocols import Evaluator
from souping.core.types import FOLDS, Fold, Item, ItemScores, Json, Recipe, ScoreMatrix, Selection, Trial, UserError
from souping.evaluate.folds import Folds
from souping.pipeline.analyses import AnalysisInput, analyse, unserved
from souping.pipeline.baseline_gate import Gate, judge
from souping.pipeline.checks import (
    check_soups,
    check_tokenizers,
    complaints,
    cut_folds,
    flat_categories,
    not_measured,
    run_notes,
)
from souping.pipeline.evaluation import Evaluation, EvaluatorWorker, WorkerPlan
from souping.pipeline.evidence import Contender, best_mixture, dry_verdict, gather, lost_answers
from souping.pipeline.kept_soup import RECIPE, check_kept, soup_in, verify
from souping.pipeline.ledger import Claim, Ledger
from souping.pipeline.models import OpenPool
from souping.pipeline.requirements import check_installed, check_room
from souping.pipeline.schedule import Ask, Schedule, SearchStage, Stage, Winner, perform
from souping.pipeline.settings import RunSettings
from souping.pipeline.side_benchmarks import SideBenchmark, compare_on, sides
from souping.pipeline.store import Store
from souping.report.cards import card
from souping.report.files import as_json, selection_dict, trial_rows, write_selection
from souping.report.progress import Progress
from souping.report.sections import ended
from souping.report.terminal import gate_table
from souping.search.loop import SearchResult, full_grid, result_of, trial_limit


@dataclass(kw_only=True)
class RunStages:
    """Walker that performs a run: pool opened, folds cut, store at hand. What came out stands in its fields."""

    run: RunSettings
    store: Store
    pool: OpenPool
    folds: Folds
    evaluation: Evaluation
    progress: Progress
    workers: Workers
    sides: Mapping[str, tuple[SideBenchmark, Evaluation]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    best: float = 0.0
    checked: Gate | None = None
    scores: ScoreMatrix | None = None
    selection: Selection | None = None
    power: Power | None = None
    outcome: SearchResult | None = None
    on_search_fold: dict[str, float] = field(default_factory=dict)
    parts: dict[str, Any] = field(default_factory=dict)
    evidence: dict[str, Any] = field(default_factory=dict)
    frozen: Path | None = None
    first_card: str = ""
    left_out: int = 0
    contenders: tuple[Recipe, ...] = ()
    on_report: tuple[Item, ...] = ()
    rows: tuple[tuple[str, Recipe], ...] = ()
    analyses: dict[str, Json] = field(default_factory=dict)

    @classmethod
    def open(cls, run: RunSettings, store: Store, progress: Progress) -> RunStages:
        """Everything that can be refused before a model is loaded is refused here.

        Raises:
            UserError: settings, items, pool and machine do not fit each other.
        """
        items = run.benchmark.items()
        folds = cut_folds(run, items)
        beside = sides(run.also, run.evaluator, run.limit)
        asked = [(run.evaluator, items), *((side.evaluator, side.items) for side in beside)]
        evaluators = [evaluator for evaluator, _ in asked]
        for complaint in complaints(run, folds.items, asked):
            raise complaint
        check_installed(run, evaluators)
        check_room(run, evaluators)
        pool = OpenPool(run.pool.resolve(), run.merge, store, progress.aside, with_base=run.uses_base)
        check_tokenizers(pool, asked)
        check_soups(run, pool)
        check_kept(run, pool)
        run = replace(run, evaluator=pool.bound(run.evaluator))
        beside = tuple(replace(side, evaluator=pool.bound(side.evaluator)) for side in beside)
        workers = _workers(run, pool, store, {"": run.evaluator, **{side.name: side.evaluator for side in beside}})

        def evaluation(evaluator: Evaluator, side: str = "") -> Evaluation:
            serve = pool.serving(evaluator)
            return Evaluation(store, evaluator, serve, pool.ends, progress.advance, workers, side)

        stages = cls(
            run=run,
            store=store,
            pool=pool,
            folds=folds,
            evaluation=evaluation(run.evaluator),
            progress=progress,
            workers=workers,
            sides={side.name: (side, evaluation(side.evaluator, side.name)) for side in beside},
        )
        stages._note(*run_notes(run, pool, folds))
        stages._announce_looks()
        if opening := run.evaluator.opening(pool.pool.home, items):
            progress.say(opening)
        return stages

    @property
    def schedule(self) -> Schedule:
        return Schedule(
            run=self.run,
            pool=self.pool,
            folds=self.folds.items,
            sides={name: side.items for name, (side, _) in self.sides.items()},
        )

    def _note(self, *notes: str) -> None:
        """Keep what a reader of the report must know, and say it now."""
        self.notes += notes
        for note in notes:
            self.progress.say(f"note: {note}")

    def _announce_looks(self) -> None:
        """Say, while it can still be avoided, that this run may open a report fold that was open before."""
        opens = self.run.limit is None and self.run.stop_after is None
        if note := Ledger(self.store).announcement(self.folds.items["report"]) if opens else "":
            self.progress.say(note)

    def _answers(self, stage: Stage) -> dict[str, ItemScores]:
        """{recipe id: scores} of a stage."""
        evaluation = self.sides[stage.side][1] if stage.side else self.evaluation
        self.progress.stage(stage.name, items=len(stage.asks) * len(stage.items) * evaluation.answers)
        measured = evaluation.all_scores(stage.asks, stage.items)
        scores = {recipe.id: one for (recipe, _), one in zip(stage.asks, measured, strict=True)}
        ends = {_called(recipe): scores[recipe.id] for recipe, _ in stage.asks}
        self._note(*lost_answers(ends, stage.name, evaluation.length_key))
        return scores

    def _by_candidate(self, stage: Stage) -> dict[str, ItemScores]:
        """{candidate: scores} of a stage of single models."""
        scores = self._answers(stage)
        return {recipe.ingredients[0]: scores[recipe.id] for recipe, _ in stage.asks}

    def gate(self, stage: Stage) -> None:
        """Stop (or warn) where a single model is not what it was expected to be, before anything else costs time."""
        run = self.run
        gate = judge(run.expected, self._by_candidate(stage), run.objective, mode=run.gate, fold=stage.fold)
        self.checked = gate
        if not gate.failed:
            self.progress.say(gate.sentence())
            return
        self.progress.show(gate_table({"gate": gate.as_dict()}))
        if gate.mode == "error":
            raise UserError(f"{gate.sentence()}\nwhat was evaluated is in the store (gate=warn goes on)")
        self.notes.append(gate.sentence())

    def score(self, stage: Stage | None) -> ScoreMatrix:
        """The score matrix that selection sees: measured on the select fold, or published."""
        if stage is None:
            scores = self.run.scores.matrix(self.pool.names, not_measured)
        else:
            self._remember_choice("select")
            answers = self._by_candidate(stage)
            scores = self.run.scores.matrix(self.pool.names, lambda: ScoreMatrix.from_items(answers))
        self._note(*flat_categories(scores))
        self.scores = scores
        return scores

    def select(self, scores: ScoreMatrix | None) -> Selection:
        assert scores is not None
        self.selection = select(self.run, scores, self.progress)
        if self.run.limit is None:
            self.power = power_of(scores, self.folds.items["report"], self.run.objective, self.run.margin / 100)
            self.progress.say(self.power.sentence() if self.power else "the candidates all gave the same answers")
        return self.selection

    def search(self, stage: SearchStage) -> SearchResult:
        """The best weights of the ingredients on the search fold. One ingredient needs no search."""
        self._remember_choice("search")
        if len(stage.ingredients) == 1:
            self.progress.say(f"one expert for everything: {stage.ingredients[0]}; there is nothing to soup")
        else:
            priors = stage.priors(self.pool, self.run.optimiser)
            if priors is not None:
                self._answers(priors)
            self._announce(stage)
        outcome = perform(stage, self.run, self.pool, self.evaluation, self._tell)
        self.outcome = outcome
        tried = list(dict.fromkeys(trial.handler for trial in outcome.trials))
        if len(tried) > 1:
            self._note(f"the soup is asked by handler {outcome.handler}; tried on the search fold: {', '.join(tried)}")
        parts = zip(outcome.recipe.ingredients, outcome.recipe.weights, strict=True)
        soup = " + ".join(f"{weight:.3g} {name}" for name, weight in parts)
        self.progress.end_stage()
        self.progress.say(f"chosen: {soup}, {100 * outcome.result.objective:.1f} % on the search fold")
        if said := ended(outcome.summary):
            self.progress.say(said)
        return outcome

    def _remember_choice(self, fold: Fold) -> None:
        """Write to the ledger, before any score is shown, that candidates and their soups compete on this fold."""
        fingerprints = [candidate.fingerprint for candidate in self.pool.candidates]
        Ledger(self.store).note_search(fingerprints, self.folds.items[fold])

    def _announce(self, stage: SearchStage) -> None:
        """Say what the search will ask."""
        strategy, size, items = self.run.optimiser, len(stage.ingredients), len(stage.items)
        ways = len(self.evaluation.handlers(self.pool.uniform(stage.ingredients)))
        by = f", by each of {ways} handlers" if ways > 1 else ""
        self.progress.say(f"search: {strategy.describe(size)}, a fold of {items:,} items{by}")
        in_parts = strategy.workload(size, items) is not None  # how many soups answer how much is not known
        count = None if in_parts else trial_limit(strategy, size, ways, items)
        self.progress.stage(stage.name, items=count * items * self.evaluation.answers if count else None, trials=count)

    def _tell(self, trial: Trial) -> None:
        self.run.tracker.log(trial)
        if not trial.whole:
            return
        self.best = max(self.best, trial.result.objective)
        self.progress.trial(trial.number, trial.result.objective, self.best)

    def singles(self, stage: Stage) -> str:
        """The candidate that search would have deployed: the best on the search fold, first of equals."""
        scores = self._by_candidate(stage)
        self.on_search_fold = {name: result_of(s, self.run.objective).objective for name, s in scores.items()}
        return max(self.on_search_fold, key=lambda name: round(self.on_search_fold[name], 12))

    def freeze(self, selection: Selection, winner: Winner) -> None:
        """Write the winner, whole or not at all, with a card that has no numbers: the report fold is still closed."""
        run, outcome, scores = self.run, self.outcome, self.scores
        assert outcome is not None
        assert scores is not None
        self.parts = {
            "experiment": run.name,
            "benchmark": {"name": run.benchmark.label, "note": run.benchmark.note},
            **({} if run.limit is None else {"limit": run.limit}),
            "objective": self._objective(outcome),
            "selection": selection_dict(selection, scores),
            "recipe": outcome.recipe.as_dict(),
            "folds": self.folds.counts(),
            "items": self.folds.content,
            "warnings": self._warnings(scores),
            **({} if self.power is None else {"power": asdict(self.power)}),
        }
        there = soup_in(run.out)
        if there is not None and there.fingerprint != outcome.recipe.fingerprint:
            put(run.run_dir / RECIPE, as_json(outcome.recipe.as_dict()).encode())
            self._note(f"out={run.out} holds another soup, {there.id}, which stays; this run's recipe is in {RECIPE}")
        elif len(selection.ingredients) > 1:
            self.parts["rebuild"] = run.rebuild_command
            self.first_card = card(self.parts)
            self._write_soup(outcome.recipe, there)
            self.progress.say("the recipe is frozen: what follows measures the soup and changes nothing")
        if self.checked is not None:
            self.parts["gate"] = self.checked.as_dict()

    def _write_soup(self, recipe: Recipe, there: Recipe | None) -> None:
        """Write the soup, or verify the one that an earlier run left."""
        if there is None:
            self.progress.stage("writing the soup")
            self.pool.write(recipe, self.run.out, {"README.md": self.first_card})
        else:
            self.progress.stage("verifying the soup that is there")
            verify(self.pool, recipe, self.run.out)
        self.frozen = self.run.out

    def _objective(self, outcome: SearchResult) -> dict[str, Any]:
        names = list(outcome.result.categories)
        weights = self.run.objective.coefficients(names).tolist()
        return {
            "name": self.run.objective.name,
            "coefficients": dict(zip(names, weights, strict=True)),
            "search": outcome.result.objective,
        }

    def _warnings(self, scores: ScoreMatrix) -> list[str]:
        """What a reader of the report must know."""
        if not scores.published:
            return list(self.notes)
        return [*self.notes, "selection saw published scores: the benchmark's own test set chose the ingredients"]

    def report(self, stage: Stage, contenders: Sequence[Contender]) -> None:
        """Open the report fold for the frozen recipe (written to the ledger first) and compare."""
        assert self.outcome is not None
        assert self.selection is not None
        dry = self.run.limit is not None
        items = self.unseen(stage.items)
        opened = 1 if dry else self._opened(items)
        Ledger(self.store).note_shown((recipe for recipe, _ in stage.asks), items)
        measured = self._answers(replace(stage, items=items))
        self.contenders, self.on_report = tuple(recipe for recipe, _ in stage.asks), items
        self.rows = tuple((contender.name, contender.recipe) for contender in contenders)
        ingredients = self.selection.ingredients
        margin = self.run.margin / 100
        mixture = best_mixture(self.outcome, self.folds.items["search"], self.run.objective)
        key = self.run.evaluator.length_key
        self.evidence = gather(contenders, measured, self.run.objective, ingredients, opened, margin, key, mixture)
        if dry:
            self.evidence["verdict"] = {**self.evidence["verdict"], **dry_verdict(self.run.limit)}

    def _opened(self, items: Sequence[Item]) -> int:
        """The number of looks at these items, this one included, which is written to the ledger first."""
        assert self.outcome is not None
        ledger, run, recipe = Ledger(self.store), self.run, self.outcome.recipe
        look = ledger.open_report(
            Claim(
                soup=recipe,
                candidates=tuple(candidate.fingerprint for candidate in self.pool.candidates),
                evaluator=run.evaluator.look,
                objective=run.objective,
                margin=run.margin,
                items=tuple(items),
            )
        )
        if deleted := ledger.deleted():
            self._note(f"{deleted} rows of the ledger in {run.store_path} were deleted: each counts as a report")
        if look.first and (viewed := ledger.viewed(recipe.id, items)):
            self._note(
                f"answers to {viewed} of {len(items)} report items were looked at (souping show) in another recipe's "
                "report: what was chosen since then has seen them"
            )
        if look.number > 1:
            self._note(look.sentence())
        return look.number

    def unseen(self, items: tuple[Item, ...]) -> tuple[Item, ...]:
        """The items of the report fold that no run chose on among this recipe's ingredients.

        Raises:
            UserError: a category has none left.
        """
        assert self.outcome is not None
        if self.run.limit is not None:  # none of them is the report fold's
            return items
        chosen_on = Ledger(self.store).chosen_on(self.outcome.recipe)
        left = tuple(item for item in items if item.identity not in chosen_on)
        if len(left) == len(items):
            return items
        gone = {item.category for item in items} - {item.category for item in left}
        if gone:
            raise UserError(
                f"category {min(gone)}: earlier runs with other folds chose among these ingredients on all of its "
                "report items, so nothing can be reported on them: add items that no run has seen"
            )
        self.left_out = len(items) - len(left)
        self.parts["folds"] = {**self.folds.counts(), "report": len(left), "left_out": self.left_out}
        self._note(
            f"{self.left_out} of {len(items)} report items are left out: earlier runs with other folds chose among "
            "these ingredients on them"
        )
        return left

    def also(self, stage: Stage) -> None:
        """The frozen soup and its ingredients on all items of another benchmark."""
        assert self.outcome is not None
        assert self.selection is not None
        Ledger(self.store).note_shown((recipe for recipe, _ in stage.asks), stage.items)
        measured = self._answers(stage)
        ingredients = {name: self.pool.recipe({name: 1.0}) for name in self.selection.ingredients}
        asked = {str(item.prompt) for fold in FOLDS for item in self.folds.items[fold]}
        side = self.sides[stage.side][0]
        result = compare_on(side, self.outcome.recipe, ingredients, measured)
        result["shared"] = sum(str(item.prompt) in asked for item in side.items)
        self.evidence.setdefault("also", []).append(result)

    def analyse(self, name: str, stage: Stage) -> None:
        """Ask what an analysis asks for, then take what it says. Whatever goes wrong, the run goes on without it."""
        new = self.tell_price(stage) if stage.asks else ()
        try:
            self._answers(replace(stage, asks=new))
            self.analyses[name] = analyse(self.run.analyses[name], self._analysed().scores(stage.asks))
        except UserError as error:  # of a part that answers
            self.analyses[name] = {"failed": str(error)}

    def tell_price(self, stage: Stage) -> tuple[Ask, ...]:
        """Say what an analysis will ask before it does; those that have something to answer."""
        new = [len(self.evaluation.lacking(recipe, stage.items, handler)) for recipe, handler in stage.asks]
        self.progress.say(
            f"{stage.name}: {len(stage.asks)} models on the {len(stage.items)} items of the search fold, "
            f"{sum(map(bool, new))} of them new: {sum(new):,} answers to ask"
        )
        return tuple(ask for ask, answers in zip(stage.asks, new, strict=True) if answers)

    def _analysed(self) -> AnalysisInput:
        """What the run's analyses see."""
        outcome, selection = self.outcome, self.selection
        assert outcome is not None
        assert selection is not None
        stored = Evaluation(self.store, self.run.evaluator, unserved, self.pool.ends, lambda items: None)
        return AnalysisInput(
            run=self.run,
            soups=self.schedule.soups(selection.ingredients, outcome),
            trials=tuple((trial.recipe, trial.handler) for trial in outcome.trials),
            contenders=self.contenders,
            items={**self.folds.items, "report": self.on_report},
            handler=outcome.handler,
            metric=selection.metric,
            stored=stored,
        )

    def whole_report(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """report.json and the rows of its trials, once the schedule was walked to its end."""
        assert self.scores is not None
        assert self.selection is not None
        assert self.outcome is not None
        trials = trial_rows(self.outcome.trials, self.selection)
        if self.outcome.summary:
            self.parts["search"] = dict(self.outcome.summary)
        self.progress.stage("stability of the selection")
        steady = stability(self.scores, self.run.selector)
        more = {"warnings": self._warnings(self.scores), "stability": steady, "cost": self._cost(len(trials))}
        return {**self.parts, **self.evidence, **more, "analyses": self.analyses}, trials

    def replace_card(self, report: Mapping[str, Any]) -> None:
        """Put the report's verdict and numbers on the card of the soup, unless it has some or was edited."""
        if self.frozen is None or not self.frozen.is_dir():
            return
        path = self.frozen / "README.md"
        if not path.exists() or path.read_bytes() == self.first_card.encode():
            put(path, card(report).encode())

    def _cost(self, trials: int) -> dict[str, Any]:
        evaluations = [self.evaluation, *(evaluation for _, evaluation in self.sides.values())]
        return {
            "evaluated_items": sum(evaluation.evaluated for evaluation in evaluations),
            "reused_items": sum(evaluation.reused for evaluation in evaluations),
            "trials": trials,
            "seconds": round(time.monotonic() - self.run.started, 3),
            **({"lost_workers": self.workers.lost} if self.workers.lost else {}),
            **self._search_cost(),
        }

    def _search_cost(self) -> dict[str, Any]:
        """What the search took, and what the grid of the paper would have, at the same rates."""
        outcome, selection = self.outcome, self.selection
        assert outcome is not None
        assert selection is not None
        if not outcome.trials:
            return {}
        spent = {**asdict(outcome.cost), "soups": len(outcome.trials)}
        singles = [self.pool.recipe({name: 1.0}).fingerprint for name in self.pool.names]
        rate = self.store.throughput(singles, self.run.evaluator.fingerprint)
        full = full_grid(outcome.cost, len(selection.ingredients), len(self.folds.items["search"]), rate)
        return {"search": {**spent, "full_grid": full}}


def _workers(run: RunSettings, pool: OpenPool, store: Store, evaluators: Mapping[str, Evaluator]) -> Workers:
    """Whoever makes soups and asks them: this process, or those that the executor starts."""
    here = EvaluatorWorker({side: (evaluator, pool.serving(evaluator)) for side, evaluator in evaluators.items()})
    plan = WorkerPlan(
        home=Path.cwd(),
        candidates=pool.candidates,
        merge=run.merge,
        evaluators=evaluators,
        digests=dict(store.hashes),
    )
    return run.executor.start(here, plan)


def select(run: RunSettings, scores: ScoreMatrix, progress: Progress) -> Selection:
    """Pick the ingredients, say which, with what a reader must know of the choice, and write selection.json."""
    selection = run.selector.chosen(scores)
    few = few_models(len(scores.models)) if selection.correlations is not None else ""
    selection = replace(selection, notes=(*selection.notes, few) if few else selection.notes)
    progress.say(f"selected {', '.join(selection.ingredients)}")
    for note in selection.notes:
        progress.say(f"note: {note}")
    limit = {} if run.limit is None else {"limit": run.limit}
    write_selection(selection_dict(selection, scores) | limit, run.run_dir / "selection.json")
    return selection


def _called(recipe: Recipe) -> str:
    return recipe.ingredients[0] if len(recipe.ingredients) == 1 else f"soup {recipe.id}"

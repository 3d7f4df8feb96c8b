"""The six steps of a run, `STEPS`: score the candidates, select, search, write the soup, test, analyse.

`Steps` holds their order and says which models answer which items: `choose` takes the first four and `measure` the last
two, each step with the state of the step before it (`runs/state.py`). `Run` performs them, a plan walks through the
same steps and counts, and a run that is repeated finds every answer in the store.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from souping.analysis import RunSoups
from souping.analysis.alternatives import RoutedAnswers
from souping.analysis.guards import Guard
from souping.answers.report_choices import Choices
from souping.core.protocols import Evaluator
from souping.core.types import (
    OWN_BENCHMARK,
    Candidate,
    Items,
    ItemScores,
    Names,
    Recipe,
    Split,
    Trial,
    UserError,
    Weights,
    frozen,
)
from souping.evaluate.benchmark import first_items, two_splits
from souping.report.content import ExpectedSummary, Report
from souping.runs.settings import ExtraEntry, RunSettings, model_settings
from souping.runs.state import (
    Contender,
    ContenderKind,
    ExtraBenchmark,
    Frozen,
    Reported,
    Searched,
    Selected,
    State,
)
from souping.search.loop import RecipeEvaluator, RecipeSource, SearchResult, find_weights
from souping.selection import ranking

if TYPE_CHECKING:
    from souping.analysis import Analysis

STEPS = ("score", "select", "search", "write", "test", "analyse")
"""Steps of a run in their order. Every stage that a run prints begins with its step and a colon."""
SEARCH = "search: soups and single models"
"""Name of the stage in which the optimiser decides what is evaluated."""


@frozen
class Stage:
    """Models that answer the same items.

    `benchmark` names the one whose evaluator answers: the run's own or an extra benchmark. With `any_block`, stored
    answers of other blocks count too.
    """

    name: str
    models: tuple[Recipe, ...]
    items: Items
    split: Split = "test"
    benchmark: str = OWN_BENCHMARK
    any_block: bool = False


def extra_benchmarks(
    entries: Sequence[ExtraEntry], evaluator: Evaluator, limit: int | None = None
) -> tuple[ExtraBenchmark, ...]:
    """The benchmarks with their items, at most `limit` per category.

    Items are answered by the run's evaluator; if that brings its own items, by `evaluator=local` with its defaults and
    the run's dtype and device.

    Raises:
        UserError: items cannot be had, or two entries share a name.
    """
    names = [entry.name for entry in entries]
    for number, name in enumerate(names):
        if name in names[:number]:
            raise UserError(
                f"extra_benchmarks[{number}]: two entries are called {name!r}: give one a name of its own"
            )
    return tuple(_open_benchmark(entry, evaluator, limit) for entry in entries)


def _open_benchmark(
    entry: ExtraEntry, run_evaluator: Evaluator, limit: int | None
) -> ExtraBenchmark:
    """One extra benchmark with its items, at most `limit` per category, and the evaluator that answers them."""
    from souping.evaluate.generate import LocalEvaluator

    evaluator = entry.evaluator or run_evaluator
    # An evaluator that brings its own items cannot answer others.
    if entry.evaluator is None and run_evaluator.prompts.brings_items:
        evaluator = LocalEvaluator(**model_settings(vars(run_evaluator)))
    benchmark = entry.benchmark or evaluator.prompts.benchmark
    # An entry without items has an evaluator that brings them.
    assert benchmark is not None
    try:
        items = first_items(benchmark.items(), entry.limit)
    except UserError as error:
        raise error.at(f"extra_benchmarks: {entry.name}") from error
    return ExtraBenchmark(name=entry.name, evaluator=evaluator, items=first_items(items, limit))


class Candidates(RecipeSource, Protocol):
    """Pool of a run or of its plan."""

    @property
    def candidates(self) -> Sequence[Candidate]: ...


class Steps:
    """Steps of a run over a pool. `splits` are empty if the items are not available; `extra` are {extra benchmark: its
    items}.

    What is implemented here evaluates every stage and draws no conclusion, which is what a plan does.
    """

    def __init__(
        self,
        settings: RunSettings,
        pool: Candidates,
        splits: Mapping[Split, Items],
        extra: Mapping[str, Items],
    ) -> None:
        self.settings = settings
        self.pool = pool
        self.splits = splits
        self.extra = extra

    def walk(self) -> State:
        """Take the steps in order, to the end or to `stop_after`, as a plan does; what is known then."""
        choices = self.choose()
        if isinstance(choices, Frozen):
            return self.measure(choices)
        return choices

    def choose(self) -> Selected | Searched | Frozen:
        """Score, select, search and write; the state after the last step that `stop_after` allows."""
        settings = self.settings
        expected_check: ExpectedSummary | None = None
        if expected := self._expected():
            expected_check = self.check_expected(expected)
        # Published scores take the place of the candidates' answers.
        every_candidate: Stage | None = None
        if not settings.scores.published:
            every_candidate = self._candidates("score: every candidate", "select")
        selected = replace(self.select(every_candidate), expected_check=expected_check)
        if settings.stop_after == "select":
            return selected
        on_search_split = self._candidates("search: every candidate", "search")
        guards = self._guards(selected)
        if guards:
            selected = self.open_guards(selected, guards, on_search_split)
        searched = self.search(selected)
        if settings.stop_after == "search":
            return searched
        return self.write(searched, on_search_split)

    def measure(self, frozen: Frozen) -> Reported:
        """Test the frozen soup on the test split and the extra benchmarks, and analyse."""
        contenders = self.contenders(frozen)
        models = [contender.recipe for contender in contenders]
        # Some are tested, but are no rows of the report.
        weights = self.weights_of(frozen.searched.winner.recipe)
        models += map(self.pool.recipe, self.settings.pool.replicates(weights))
        stage = self._stage("test: soup and baselines", models, "test")
        state = self.test(frozen, stage, contenders)
        for stage in self._extra_stages(frozen):
            state = self.extra_benchmark(state, stage)
        soups = self.soups(state.searched)
        for name, analysis in self.settings.analyses.items():
            state = self.analyse(state, name, self.analysis_stage(name, analysis, soups))
        return state

    def evaluate_stage(self, stage: Stage) -> dict[str, ItemScores]:
        """{recipe id: scores} of a stage; a plan only counts answers and returns {}."""
        raise NotImplementedError

    def check_expected(self, stage: Stage) -> ExpectedSummary | None:
        """Compare the candidates that have an expected score with it."""
        self.evaluate_stage(stage)
        return None

    def select(self, stage: Stage | None) -> Selected:
        """The ingredients, by the scores of a stage or by published ones: `Run.select` makes that table."""
        raise NotImplementedError

    def open_guards(self, selected: Selected, guards: tuple[Guard, ...], stage: Stage) -> Selected:
        """The selection with its guards, and the scores in `stage` of the model that soups must not fall behind."""
        raise NotImplementedError

    def search(self, selected: Selected) -> Searched:
        """The best weights of the ingredients on the search split."""
        raise NotImplementedError

    def write(self, searched: Searched, stage: Stage) -> Frozen:
        """The soup, and the best candidate by the scores in `stage`: nothing is chosen after this step."""
        self.evaluate_stage(stage)
        # Without scores, any candidate stands for the best one.
        return self.freeze(searched, self.pool.names[0])

    def freeze(self, searched: Searched, best: str) -> Frozen:
        """The state of a run whose choices are made; `best` is the best candidate. Its report has no content yet."""
        report = Report(name=self.settings.name)
        return Frozen(searched=searched, choices=Choices(best=best), report=report)

    def test(self, frozen: Frozen, stage: Stage, contenders: Sequence[Contender]) -> Reported:
        """Evaluate the contenders on the test split, which opens it; the report is to be completed from them."""
        self.evaluate_stage(stage)
        return Reported(
            frozen=frozen,
            report=frozen.report,
            items=stage.items,
            contenders=tuple(contenders),
            analyses=frozen.searched.analyses,
        )

    def extra_benchmark(self, state: Reported, stage: Stage) -> Reported:
        """Score the frozen soup and its ingredients on another benchmark."""
        self.evaluate_stage(stage)
        return state

    def analyse(self, state: Reported, name: str, stage: Stage) -> Reported:
        """Make one analysis; the soups that it needs answer the search split in `stage`."""
        raise NotImplementedError

    def contenders(self, frozen: Frozen) -> list[Contender]:
        """Rows of the report, the soup last."""
        names = self.pool.names
        selected = frozen.searched.selected
        ingredients = selected.selection.ingredients
        single = self.single
        rows = []
        for name in names:
            kind: ContenderKind = "ingredient" if name in ingredients else "candidate"
            rows.append(Contender(name=name, kind=kind, recipe=single(name)))
        best = frozen.choices.best
        rows.append(Contender(name=best, kind="best_candidate", recipe=single(best)))
        rows.append(Contender(name="uniform_all", kind="uniform_all", recipe=self.uniform(names)))
        if len(ingredients) > 1:
            rows += self._uniform_rows(frozen)
        soup = frozen.searched.winner.recipe
        return [
            *rows,
            *self._pool_rows(soup),
            Contender(name="soup", kind="soup", recipe=soup),
        ]

    def _uniform_rows(self, frozen: Frozen) -> list[Contender]:
        """Averages of the ingredients, and of the same number of the best candidates."""
        selected = frozen.searched.selected
        uniform = self.uniform(selected.selection.ingredients)
        top = frozen.choices.top
        best = self.uniform(top) if top else self.uniform_best(selected)
        return [
            Contender(name="uniform_selected", kind="uniform_selected", recipe=uniform),
            Contender(name="uniform_topk", kind="uniform_topk", recipe=best),
        ]

    def uniform_best(self, selected: Selected) -> Recipe:
        """The average of the best candidates, with the same number of models as there are ingredients."""
        # A plan, which may lack the scores, has a method of its own.
        assert selected.scores is not None
        ranked = ranking(selected.scores, self.settings.objective, strict=False)
        best = ranked[: len(selected.selection.ingredients)]
        return self.uniform([name for name in self.pool.names if name in best])

    def _pool_rows(self, soup: Recipe) -> list[Contender]:
        """Rows that the pool adds. Its mixtures are shown beside a soup that is another mixture."""
        rows = []
        for row in self.settings.pool.rows(self.weights_of(soup)):
            recipe = self.pool.recipe(row.weights)
            is_mixture = len(row.weights) > 1
            if is_mixture and (len(soup.ingredients) == 1 or recipe.id == soup.id):
                continue
            rows.append(Contender(name=row.name, kind=row.kind, recipe=recipe))
        return rows

    def router_row(self, router: RoutedAnswers) -> Contender:
        """The row of the router, whose recipe is never merged: its id stands for its routes {category: model}.

        A router that sends all categories to one model has that model's name and recipe.
        """
        models = {category: self.single(name) for category, name in router.routes.items()}
        recipe = next(iter(models.values()))
        if router.name not in router.routes.values():
            routes = {category: model.fingerprint for category, model in models.items()}
            recipe = replace(recipe, method="router", settings=routes)
        return Contender(name=router.name, kind="router", recipe=recipe)

    def weights_of(self, soup: Recipe) -> Weights:
        """The soup's weights of all candidates [K], which sum to 1."""
        weights = soup.shares
        names = self.pool.names
        # A plan does not know its soup yet: any distinct weights make the same number of recipes as the real ones.
        if not set(weights) <= set(names):
            weights = {name: float(number) for number, name in enumerate(names, start=1)}
        total = sum(weights.values())
        return tuple(weights.get(name, 0.0) / total for name in names)

    def soups(self, searched: Searched) -> RunSoups:
        """What analyses know of the run before they see scores."""
        return RunSoups(
            candidates={name: self.single(name) for name in self.pool.names},
            ingredients=searched.selected.selection.ingredients,
            soup=searched.winner.recipe,
            recipe=self.pool.recipe,
            base=self.settings.base_candidate(self.pool.candidates),
        )

    def analysis_stage(self, name: str, analysis: Analysis, soups: RunSoups) -> Stage:
        """The soups that an analysis needs, on the search split: analyses never see another split answered for them.

        Answers are taken from whatever blocks the search left them in.
        """
        stage = self._stage(f"analyse: {name}", analysis.asks(soups), "search")
        return replace(stage, any_block=True)

    def ingredient_stage(self, ingredients: Sequence[str]) -> Stage | None:
        """The ingredients one by one; None if there is only one, or the search does not begin with their scores."""
        if len(ingredients) < 2 or not self.settings.optimiser.uses_singles:
            return None
        return self._stage("search: the ingredients", map(self.single, ingredients), "search")

    def find_weights(
        self,
        evaluation: RecipeEvaluator,
        selected: Selected,
        log: Callable[[Trial], None] = lambda trial: None,
    ) -> SearchResult:
        """The best weights of the selected ingredients on the search split; `log` gets every trial."""
        settings = self.settings
        admission = selected.admission
        return find_weights(
            optimiser=settings.optimiser,
            objective=settings.objective,
            seed=settings.seed,
            pool=self.pool,
            evaluation=evaluation,
            ingredients=selected.selection.ingredients,
            items=self.splits.get("search", ()),
            log=log,
            bounds=None if admission is None else admission.bounds,
        )

    def front_stage(self, models: Iterable[Recipe]) -> Stage:
        """Soups that may be on the front and have to answer the whole search split."""
        return self._stage("search: confirmed points of the front", models, "search")

    @property
    def categories(self) -> list[str]:
        items = itertools.chain.from_iterable(self.splits.values())
        return list(dict.fromkeys(item.category for item in items))

    @property
    def guarded_items(self) -> dict[Split, dict[str, Items]]:
        """{split: {benchmark: its items}} of the search and test splits, including OWN_BENCHMARK.

        Items of extra benchmarks are cut into the two splits by the rule that cuts the run's.
        """
        search = {OWN_BENCHMARK: self.splits.get("search", ())}
        test = {OWN_BENCHMARK: self.splits.get("test", ())}
        for name, items in self.extra.items():
            splits = two_splits(items)
            search[name] = splits["search"]
            test[name] = splits["test"]
        return {"search": search, "test": test}

    def guard_stage(self, guard: Guard, models: Iterable[Recipe]) -> Stage:
        """Models on the part of another benchmark that the search may see."""
        stage = self._stage(f"search: guard {guard.name}", models, "search")
        items = two_splits(self.extra[guard.benchmark])["search"]
        return replace(stage, items=items, benchmark=guard.benchmark)

    def single(self, name: str) -> Recipe:
        return self.pool.recipe({name: 1.0})

    def uniform(self, names: Sequence[str]) -> Recipe:
        return self.pool.recipe({name: 1.0 / len(names) for name in names})

    def _guards(self, selected: Selected) -> tuple[Guard, ...]:
        if len(selected.selection.ingredients) < 2:
            return ()
        return self.settings.guards_on(self.categories)

    def _extra_stages(self, frozen: Frozen) -> list[Stage]:
        """The soup and its ingredients on each extra benchmark; on a guarded one, without the items that the search has
        seen."""
        searched = frozen.searched
        selected = searched.selected
        guarded = {guard.benchmark for guard in self._guards(selected)}
        ingredients = [self.single(name) for name in selected.selection.ingredients]
        soup = searched.winner.recipe
        stages = []
        for name, items in self.extra.items():
            models = [*ingredients, soup]
            if name in guarded:
                items = two_splits(items)["test"]
                # Guards compare the soup with this candidate. A plan does not know it.
                if selected.admission is not None:
                    models = [*ingredients, self.single(selected.admission.against), soup]
            stage = self._stage(f"test: {name}", models, "test")
            stages.append(replace(stage, items=items, benchmark=name))
        return stages

    def _stage(self, name: str, models: Iterable[Recipe], split: Split) -> Stage:
        """A stage in which models answer a split of the run's items; models with the same content answer once."""
        recipes = {recipe.fingerprint: recipe for recipe in models}
        return Stage(
            name=name, models=tuple(recipes.values()), items=self.splits.get(split, ()), split=split
        )

    def _candidates(self, name: str, split: Split, candidates: Names = ()) -> Stage:
        """The candidates of these names, by default all, on a split; unlike `_stage`, equal models each count."""
        models = tuple(map(self.single, candidates or self.pool.names))
        return Stage(name=name, models=models, items=self.splits.get(split, ()), split=split)

    def _expected(self) -> Stage | None:
        """Candidates with an expected score, on a split that they answer in any case."""
        settings = self.settings
        expected = dict.fromkeys(expectation.candidate for expectation in settings.expected)
        candidates = tuple(name for name in expected if name in self.pool.names)
        # A selection by published scores measures nothing.
        if not candidates or settings.selects_from_table:
            return None
        split: Split = "search" if settings.scores.published else "select"
        return self._candidates("score: candidates with an expected score", split, candidates)

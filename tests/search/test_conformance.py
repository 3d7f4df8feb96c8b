"""What every weight search promises (add a row), what each adds; and the loop that asks, limits and confirms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from souping.core.protocols import Optimiser, Search
from souping.core.scores import Mean
from souping.core.types import (
    FloatArray,
    Item,
    ItemScores,
    Json,
    Query,
    Recipe,
    Request,
    Result,
    SearchSpace,
    Trial,
    UserError,
    Weights,
)
from souping.search import points as simplex
from souping.search.adaptive import Adaptive
from souping.search.loop import (
    RecipeEvaluator,
    RecipeSource,
    SearchedSoup,
    SearchResult,
    SearchRun,
    find_weights,
)
from souping.search.points import Fixed, GreedySoup, Grid, ListSearch, Nevergrad, Uniform
from souping.search.windows import (
    ALPHAS,
    TrajectoryAverages,
    Window,
    WindowKind,
    shuffled,
    windows,
)
from souping.testing import INGREDIENTS, check_optimiser, run_search, search_space
from tests.conftest import make_items, recipe
from tests.support.choices import differing, each

ROWS: dict[str, list[Optimiser]] = {
    "grid": [Grid(), Grid(max_trials=12)],
    "nevergrad": [
        Nevergrad(max_trials=9),
        Nevergrad(algorithm="CMA", max_trials=9),
        Nevergrad(algorithm="ScrHammersleySearch", parametrisation="normalise", max_trials=9),
        Nevergrad(algorithm="DiscreteOnePlusOne", parametrisation="lattice", max_trials=9),
    ],
    "adaptive": [Adaptive(), Adaptive(early_stopping=False, max_items=400), Adaptive(step=0.05)],
    "greedy_soup": [GreedySoup()],
    "uniform": [Uniform()],
    "fixed": [Fixed(weights=[0.5, 0.2, 0.3])],
    "trajectory": [
        TrajectoryAverages(),
        TrajectoryAverages(max_trials=4),
        TrajectoryAverages(kind="minus_sqrt"),
    ],
}


def test_every_choice_has_a_row() -> None:
    assert differing("optimiser", ROWS) == {}


@pytest.mark.parametrize("optimiser", each(ROWS))
def test_a_strategy_conforms(optimiser: Optimiser) -> None:
    check_optimiser(optimiser)
    with pytest.raises(UserError, match=r"optimiser\.max_trials"):
        optimiser.start(search_space(), 0).best()
    known = optimiser.known_points(3)
    if known is not None:
        requested = set(run_search(optimiser, limit=200)[0])
        assert len(requested) == min(len(known), optimiser.max_trials or len(known))


@pytest.mark.parametrize(
    ("size", "soups"), [(2, 9 + 2), (3, 36 + 1 + 3), (4, 84 + 1 + 4), (5, 126 + 5), (10, 1 + 10)]
)
def test_grid_is_the_papers_points_uniform_and_vertices_each_once(size: int, soups: int) -> None:
    points = Grid().known_points(size)
    assert len(np.unique(np.round(points, 6), axis=0)) == soups
    assert len(points) == soups
    assert Grid().count(size) == soups
    assert set(simplex.weight_grid(size)) | set(simplex.vertices(size)) <= {
        p for p in points if p != simplex.uniform(size)
    } | {min(simplex.weight_grid(size), key=lambda p: max(abs(w - 1 / size) for w in p))}


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        (lambda: Grid().known_points(11), "no point for 11 ingredients"),
        (lambda: Grid(step=0.01).known_points(6), "over a million"),
        (lambda: Nevergrad(algorithm="OnePlusOn"), "did you mean OnePlusOne"),
        (lambda: Nevergrad(max_trials=None), "never ends by itself"),
        (
            lambda: Nevergrad(parametrisation="lattice", step=0.5).start(search_space(), 0),
            "no lattice point",
        ),
        (lambda: Grid(max_trials=0), "max_trials=.* at least 1"),
    ],
)
def test_a_wrong_size_step_algorithm_or_weight_is_refused(
    refused: Callable[[], object], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        refused()


def test_equal_results_prefer_fewer_ingredients_then_the_earlier() -> None:
    search = ListSearch([(0.5, 0.5), (1.0, 0.0), (0.0, 1.0)])
    flat = Result(objective=0.7, categories={}, items=1)
    for query in [search.ask() for _ in range(3)][::-1]:
        assert query is not None
        search.tell(query, flat)
    assert search.best() == (1.0, 0.0)


def test_a_seed_decides_nevergrads_proposals_and_its_check_moves_no_random_numbers() -> None:
    before = np.random.RandomState(3).get_state()
    np.random.set_state(before)
    assert (
        run_search(Nevergrad(max_trials=9), seed=1)[0]
        != run_search(Nevergrad(max_trials=9), seed=2)[0]
    )
    assert str(np.random.get_state()) == str(before)


def test_fixed_weights_follow_the_pool_or_the_ingredients() -> None:
    for given in ([0.4, 0.6], [0.4, 0, 0.6]):
        assert Fixed(weights=given).start(search_space(("a", "c")), 0).ask() == Query(
            weights=(0.4, 0.6)
        )
    with pytest.raises(UserError, match=r"gives 0.2 to b, which was not selected"):
        Fixed(weights=[0.4, 0.2, 0.4]).start(search_space(("a", "c")), 0)
    with pytest.raises(UserError, match="has 4 weights"):
        Fixed(weights=[0.25] * 4).start(search_space(("a", "c")), 0)
    with pytest.raises(UserError, match=r"sums to 0.9"):
        Fixed(weights=[0.4, 0.5])
    rows = ([0.4, 0.6], [0.0, 1.0], [1.0], [1.1, -0.1])
    assert [Fixed(weights=row).extrapolates for row in rows] == [False, False, False, True]


def two_digits(weights: Weights) -> list[str]:
    return [f"{weight:.2f}" for weight in weights if weight]


def test_weights_of_trajectory_averages() -> None:
    """Each equals what its decay of the learning rate, or its recursion, gives; the oldest checkpoint is the first."""
    assert two_digits(Window.of("minus_sqrt", 4, 6).weights) == ["0.50", "0.21", "0.16", "0.13"]
    assert two_digits(Window.of("uniform", 4, 6).weights) == ["0.25"] * 4
    decays: dict[WindowKind, Callable[[float], float]] = {
        "uniform": lambda t: 1 - t,
        "minus_sqrt": lambda t: 1 - t**0.5,
    }
    for kind, decay in decays.items():
        for size in (2, 5, 12):
            left = np.cumsum(np.array(Window.of(kind, size, size).weights)[::-1])[::-1]
            assert left == pytest.approx([decay(i / size) for i in range(size)])
    for alpha in ALPHAS:
        average = np.eye(5)[0]
        for one in np.eye(5)[1:]:
            average = alpha * one + (1 - alpha) * average
        assert TrajectoryAverages(kind="ema", alpha=alpha).known_points(5)[0] == pytest.approx(
            tuple(average)
        )
    assert two_digits(TrajectoryAverages(kind="ema").known_points(4)[0]) == [
        "0.51",
        "0.13",
        "0.16",
        "0.20",
    ]


@pytest.mark.parametrize(("size", "count"), [(2, 5), (5, 10), (12, 20), (100, 19)])
def test_a_schedule_lists_about_twenty_windows_each_once(size: int, count: int) -> None:
    found = windows(size)
    assert (
        len({window.weights for window in found})
        == len(found)
        == TrajectoryAverages().count(size)
        == count
    )
    for window in found:
        assert len(window.weights) == size
        assert sum(window.weights) == pytest.approx(1)
        assert [weight > 0 for weight in window.weights] == [False] * (size - window.length) + [
            True
        ] * window.length


def test_shuffled_weights_are_the_same_on_other_checkpoints() -> None:
    weights = Window.of("minus_sqrt", 4, 12).weights
    assert sorted(shuffled(weights)) == sorted(weights)
    assert shuffled(weights) == shuffled(weights) != weights


def grown(scores: dict[frozenset[int], float], late: bool) -> tuple[list[Weights], Weights]:
    """Run a greedy soup over three ingredients; with `late`, three requests are open before a result comes."""
    optimiser = GreedySoup().start(search_space(), 0)
    asked = list[Weights]()
    waiting: list[Query] = []
    while (query := optimiser.ask()) is not None or waiting:
        if query is not None:
            asked.append(query.weights)
            waiting.append(query)
        if query is None or not late or len(waiting) == 3:
            first = waiting.pop(0)
            members = frozenset(i for i, w in enumerate(first.weights) if w)
            optimiser.tell(first, Result(objective=scores[members], categories={}, items=1))
    return asked, optimiser.best()


GREEDY = {
    "grows": ({0: 0.5, 1: 0.7, 2: 0.6, 12: 0.8, 102: 0.9}, {0, 1, 2}),
    "rejects the equal": ({0: 0.5, 1: 0.7, 2: 0.6, 12: 0.7, 10: 0.75}, {0, 1}),
    "keeps the single": ({0: 0.5, 1: 0.7, 2: 0.6, 12: 0.6, 10: 0.65}, {1}),
}


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("case", list(GREEDY))
def test_a_greedy_soup_grows_only_while_strictly_better(case: str, late: bool) -> None:
    table, expected = GREEDY[case]
    scores = dict.fromkeys([frozenset(s) for s in ([0, 1], [0, 2], [1, 2], [0, 1, 2])], 0.0)
    for key, score in table.items():
        scores[frozenset(map(int, str(key)))] = score
    asked, best = grown(scores, late)
    assert {i for i, w in enumerate(best) if w} == expected
    assert late or len(asked) == 5
    assert len(set(asked)) == len(asked)


ITEMS = make_items(10)
SPACE = SearchSpace(ingredients=("a", "b"), coefficients={"w": 0.5, "x": 0.5})
FIRST = (0.5, 0.5)
SECOND = (0.3, 0.7)


def truth(weights: Sequence[float], item: Item) -> float:
    """Right on the first items of each category, as many as the weight of the first ingredient says."""
    return float(int(str(item.answer)) < 10 * weights[0])


@dataclass
class Table(RecipeEvaluator):
    """Answers by a table, `slots` at once; the latest request is answered first."""

    at_once: int = 1
    costs: float = 1.0
    open: list[Request] = field(default_factory=list)
    asked: list[tuple[Weights, int]] = field(default_factory=list)
    most: int = 0

    @property
    def slots(self) -> int:
        return self.at_once

    full_batch: int = 1
    min_items: int = 1

    @property
    def whole_splits(self) -> bool:
        return False

    def all_scores(self, soups: Sequence[Recipe], items: Sequence[Item]) -> list[ItemScores]:
        raise AssertionError("the loop submits requests")

    def scores(self, recipe: Recipe, items: Sequence[Item]) -> ItemScores:
        raise AssertionError("the loop submits requests")

    def submit(self, request: Request) -> None:
        self.open.append(request)
        self.most = max(self.most, len(self.open))

    def collect(self) -> tuple[Request, ItemScores]:
        """The request that was opened last; each item scored by the truth for the weights of a and b."""
        request = self.open.pop()
        full = {
            "a": 0.0,
            "b": 0.0,
            **dict(zip(request.recipe.ingredients, request.recipe.weights, strict=True)),
        }
        values = np.array([truth(tuple(full.values()), item) for item in request.items])
        self.asked.append((tuple(full.values()), len(request.items)))
        number = len(request.items)
        scores = ItemScores(
            items=request.items,
            values=values,
            seconds=self.costs * number,
            generated=3 * number,
            prefilled=5 * number,
        )
        return request, scores


@dataclass
class Scripted(Search):
    """Asks what it was given, and holds one soup for the best."""

    queries: list[Query]
    choice: Weights
    told: list[tuple[Query, Result]] = field(default_factory=list)

    def ask(self) -> Query | None:
        return self.queries.pop(0) if self.queries else None

    def tell(self, query: Query, result: Result) -> None:
        self.told.append((query, result))

    def best(self) -> Weights:
        return self.choice

    def summary(self) -> Mapping[str, Json]:
        return {"asked": len(self.told)}


def run(
    optimiser: Scripted,
    limits: Optimiser,
    table: Table,
    known: Mapping[Weights, ItemScores] | None = None,
) -> tuple[SearchResult, list[Trial]]:
    """The result of a search, and its trials as they were reported."""
    heard: list[Trial] = []
    found = SearchRun(
        optimiser,
        limits,
        lambda weights: recipe(*weights),
        table,
        ITEMS,
        SPACE,
        heard.append,
        known,
    ).run()
    assert list(found.trials) == heard
    return found, heard


def parts(weights: Weights, *places: Sequence[int]) -> list[Query]:
    return [Query(weights=weights, items=tuple(own)) for own in places]


def test_soups_that_were_dropped_are_no_ones_equals_and_the_winner_answers_the_whole_split() -> (
    None
):
    optimiser = Scripted([*parts(FIRST, range(5), range(10, 15)), *parts(SECOND, range(3))], FIRST)
    found, trials = run(optimiser, Grid(), Table())
    assert [(trial.weights, trial.whole, trial.result.items) for trial in trials] == [
        (FIRST, True, 20),
        (SECOND, False, 3),
    ]
    assert found.result.objective == 0.5
    assert np.isnan(trials[1].result.objective)
    # not of the confirmation
    assert [len(query.items or ()) for query, _ in optimiser.told] == [5, 5, 3]
    assert optimiser.told[0][1].values.tolist() == [1.0] * 5
    assert (found.cost.items, found.cost.seconds, found.cost.generated_tokens) == (20 + 3, 23.0, 69)
    assert found.summary == {"asked": 3}


@pytest.mark.parametrize(
    ("limits", "asked"),
    [
        (Grid(max_trials=1), [5, 5]),
        (Grid(max_items=20), [5, 5, 3]),
        (Grid(max_items=12), [5, 5]),
    ],
)
def test_the_first_limit_ends_a_search(limits: Grid, asked: list[int]) -> None:
    optimiser = Scripted([*parts(FIRST, range(5), range(10, 15)), *parts(SECOND, range(3))], FIRST)
    found, _ = run(optimiser, limits, Table())
    assert [len(query.items or ()) for query, _ in optimiser.told] == asked
    assert found.result.items == 20


def test_where_the_budget_has_no_room_for_the_best_a_whole_soup_wins() -> None:
    optimiser = Scripted([Query(weights=FIRST), *parts(SECOND, range(3), range(10, 13))], SECOND)
    found, _ = run(optimiser, Grid(max_items=26), Table())
    assert found.recipe.weights == FIRST
    assert found.cost.items == 26


@pytest.mark.parametrize(("budget", "winner"), [(39, FIRST), (40, SECOND)])
def test_a_budget_may_just_cover_the_rest_of_the_best(budget: int, winner: Weights) -> None:
    """20 items of the first and 6 of the second are spent; the second lacks 14."""
    optimiser = Scripted([Query(weights=FIRST), *parts(SECOND, range(3), range(10, 13))], SECOND)
    found, _ = run(optimiser, Grid(max_items=budget), Table())
    assert found.recipe.weights == winner


@dataclass
class Fickle(Table):
    """Right in everything at one request, and in nothing at others."""

    right: int = 0

    def collect(self) -> tuple[Request, ItemScores]:
        request, scores = super().collect()
        right = float(len(self.asked) == self.right)
        return request, replace(scores, values=np.full(len(request.items), right))


@pytest.mark.parametrize("right", [1, 2, 3])
def test_of_several_trials_of_one_soup_the_best_is_the_soups(right: int) -> None:
    found, trials = run(Scripted([Query(weights=FIRST)] * 3, FIRST), Grid(), Fickle(right=right))
    assert [trial.result.objective for trial in trials] == [n == right for n in (1, 2, 3)]
    assert found.result.objective == 1.0


class Pool(RecipeSource):
    """Two candidates."""

    @property
    def names(self) -> tuple[str, ...]:
        return ("a", "b")

    def recipe(self, weights: Mapping[str, float]) -> Recipe:
        return recipe(*weights.values(), names=tuple(weights))


class Splits(Table):
    """Answers whole splits as well."""

    def scores(self, recipe: Recipe, items: Sequence[Item]) -> ItemScores:
        self.submit(Request(number=0, recipe=recipe, items=tuple(items)))
        return self.collect()[1]

    def all_scores(self, soups: Sequence[Recipe], items: Sequence[Item]) -> list[ItemScores]:
        return [self.scores(soup, items) for soup in soups]


def test_a_single_ingredient_is_evaluated_once_and_not_searched() -> None:
    table = Splits()
    found = find_weights(Grid(), Mean(), 0, Pool(), table, ("a",), tuple(ITEMS))
    assert (found.recipe.ingredients, found.recipe.weights) == (("a",), (1.0,))
    assert found.result.objective == 1.0
    assert found.trials == ()
    assert table.asked == [((1.0, 0.0), 20)]


def test_of_two_ingredients_each_point_is_a_trial() -> None:
    """The more of the first, the more answers are right."""
    found = find_weights(Grid(), Mean(), 0, Pool(), Splits(), ("a", "b"), tuple(ITEMS))
    assert {trial.weights for trial in found.trials} == set(Grid().known_points(2))
    assert found.recipe.ingredients == ("a",)
    assert found.cost.items == 20 * len(found.trials)


def test_singles_that_are_known_are_trials_and_cost_nothing() -> None:
    singles: dict[Weights, FloatArray] = {(1.0, 0.0): np.ones(20), (0.0, 1.0): np.zeros(20)}
    known = {
        point: ItemScores(items=tuple(ITEMS), values=values) for point, values in singles.items()
    }
    found, trials = run(Scripted([Query(weights=FIRST)], FIRST), Grid(max_items=20), Table(), known)
    assert [(trial.weights, trial.reused) for trial in trials] == [
        ((1.0, 0.0), 20),
        ((0.0, 1.0), 20),
        (FIRST, 0),
    ]
    assert found.cost.items == 20
    alone, _ = run(Scripted([], (1.0, 0.0)), Grid(), Table(), known)
    assert (alone.result.objective, alone.cost.items) == (1.0, 0)


@pytest.mark.parametrize("at_once", [1, 3])
def test_as_many_are_open_as_there_are_slots_and_results_come_in_any_order(at_once: int) -> None:
    points = [(w / 10, round(1 - w / 10, 12)) for w in range(1, 10)]
    table = Table(at_once)
    found, trials = run(
        Scripted([Query(weights=point) for point in points], points[-1]), Grid(), table
    )
    assert table.most == at_once
    assert sorted(trial.weights for trial in trials) == points
    assert [trial.number for trial in trials] == list(range(9))
    assert found.result.objective == 0.9


def test_the_best_greedy_soup_of_one_ingredient_is_that_ingredient() -> None:
    running = GreedySoup().start(search_space(INGREDIENTS[:1]), 0)
    query = running.ask()
    assert query is not None
    running.tell(query, Result(objective=0.5, categories={}, items=1))
    assert running.ask() is None
    assert running.best() == (1.0,)


def test_an_algorithm_that_fits_a_meta_model_runs_with_every_numpy() -> None:
    optimiser = Nevergrad(algorithm="MetaModel", max_trials=40)
    weights, _ = run_search(optimiser, seed=1)
    assert len(weights) == 40


def test_every_other_window_from_the_longest_down_to_3_falls_with_the_square_root() -> None:
    for size, expected in ((8, [8, 6, 4]), (7, [7, 5, 3]), (4, [4]), (3, [3]), (2, [])):
        lengths = [window.length for window in windows(size) if window.kind == "minus_sqrt"]
        assert lengths == expected


def test_a_query_is_of_the_simplex_or_of_a_scaled_one_and_of_items_that_there_are() -> None:
    """The split has 20 items; scaled mixtures sum to 0.5, and nothing may be below 0."""
    for weights in ((0.5, 0.5), (0.2, 0.3), (0.0, 1.0)):
        query = Query(weights=weights, items=(0, 19))
        _, trials = run(Scripted([query], weights), Adaptive(scales=[0.5]), Table())
        assert [trial.weights for trial in trials] == [weights]
    wrong = [
        Query(weights=(0.5, 0.5), items=(20,)), Query(weights=(0.5, 0.5), items=(25,)),
        Query(weights=(0.5, 0.5), items=(3, -1)),
        Query(weights=(0.5, 0.6)), Query(weights=(1.5, -0.5)), Query(weights=(0.2, 0.2)),
    ]  # fmt: skip
    for query in wrong:
        with pytest.raises(UserError, match="must"):
            run(Scripted([query], FIRST), Adaptive(scales=[0.5]), Table())


def test_a_search_of_the_users_gives_a_search_and_a_weight_for_each_ingredient() -> None:
    class Own(Uniform):
        def start(self, space: SearchSpace, seed: int) -> ListSearch:
            return ListSearch([(1.0,)])

    class Without(Uniform):
        def start(self, space: SearchSpace, seed: int) -> ListSearch:
            return [FIRST]  # type: ignore[return-value]

    items = tuple(ITEMS)
    with pytest.raises(UserError, match="gave 1 weights for 2 ingredients"):
        find_weights(Own(), Mean(), 0, Pool(), Splits(), ("a", "b"), items)
    with pytest.raises(UserError, match="started a list, which is not a Search"):
        find_weights(Without(), Mean(), 0, Pool(), Splits(), ("a", "b"), items)


def test_what_a_search_of_trajectory_averages_says_of_itself() -> None:
    assert (
        TrajectoryAverages(kind="ema", alpha=0.25).describe(5)
        == "trajectory: one soup, ema (alpha 0.25)"
    )
    assert TrajectoryAverages(kind="uniform").describe(5) == "trajectory: one soup, uniform"
    every = TrajectoryAverages(max_trials=7).describe(5)
    assert every.startswith(
        f"trajectory: {len(windows(5))} averages of the last 1 to 5 checkpoints, "
    )
    assert "7" in every
    assert TrajectoryAverages(kind="ema", alpha=0.25).known_points(5) == [
        Window.of("ema", 5, 5, 0.25).weights
    ]


def test_the_scores_of_a_soup_are_not_the_lengths_of_its_answers() -> None:
    answers = np.array([[0.5, np.nan], [7.0, np.nan]])
    soup = SearchedSoup(recipe=recipe(0.5, 0.5), weights=(0.5, 0.5), answers=answers)
    assert soup.values == pytest.approx([0.5, np.nan], nan_ok=True)

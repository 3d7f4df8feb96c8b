"""How often somebody who looks again claims something that is not so, as the package's store counts looks.

    python -m benchmarks.looks [--repetitions 2000] [--only TEXT ..] [--date DATE]
        [--out benchmarks/results/looks-DATE.md]

Every world is a person with a results store in memory, who sees scores and then reports, compares or repeats what looks
best. All models are equally good, so each claim "better" is false. The store says which items a report may use, its
look, its best candidate and the models that are tested with it; the store has the answers. A world fails above LEVEL
plus three standard errors: the limit of any number of looks. Worlds in BEYOND have no limit: they show what the rules
leave to the reader. Whatever somebody does in HONEST must stay at look 1.

With `--rows FILE`, false claims per world are kept in that file after every CHUNK repetitions, and a later call goes on
from there.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.nulls import Layout
from souping.analysis.guards import Guard, guard_tests
from souping.answers.claims import Claim, Look, Measurement, pair_digest
from souping.answers.counted_looks import CountedLooks
from souping.answers.evaluation import Evaluation
from souping.answers.report_choices import Choices
from souping.answers.store import IN_MEMORY, Store
from souping.core.scores import Mean
from souping.core.types import Item, ItemScores, Recipe, Record
from souping.evaluate.templates import Decoding
from souping.runs.evidence import KnownScores
from souping.runs.held_out import HeldOutItems
from souping.runs.steps import Stage
from souping.statistics.comparison import contrast
from souping.statistics.corrections import ALPHA, Level, penalty
from souping.statistics.score_table import ItemTable, ScoreTable

LEVEL = 0.0375
"""False claims over any number of looks."""
LAYOUT = Layout(2, 100, alone=True)
HARD = 0.5
"""Share of an item's variance that all models have in common."""
TIMES = 20
CHUNK = 20
"""Repetitions after which `--rows` is written."""


class Person:
    """A store, its looks, and scores of models on the same items.

    Rows of `scores` [M, I] are models: the first is the single model that all are compared with.
    """

    def __init__(self, rng: np.random.Generator, models: int, alike: float = 0.0) -> None:
        self.rng = rng
        self.items = tuple(
            Item(id=f"{n}", category=f"c{c}", prompt=f"{rng.integers(2**60)} {n}", answer="")
            for n, c in enumerate(LAYOUT.categories)
        )
        self.scores = self.draw(models, alike)
        self.store = Store(Path(IN_MEMORY))
        self.counted_looks = CountedLooks(self.store)

    def draw(self, models: int, alike: float = 0.0) -> np.ndarray:
        """Right or wrong, at random [M, I]; `alike` is the part that soups share beyond the items."""
        items = len(self.items)
        item = self.rng.standard_normal(items) * math.sqrt(HARD)
        shared = self.rng.standard_normal(items) * math.sqrt(alike * (1 - HARD))
        own = self.rng.standard_normal((models, items)) * math.sqrt((1 - alike) * (1 - HARD))
        own[0] = self.rng.standard_normal(items) * math.sqrt(1 - HARD) - shared
        return (item + shared + own < 0.5).astype(float)

    def recipe(self, model: int, single: bool = False) -> Recipe:
        names = (f"m{model}",) if single else (f"a{model}", "b")
        return Recipe(
            ingredients=names, fingerprints=names, weights=(1 / len(names),) * len(names), dtype="F"
        )

    def keep(self, model: int, single: bool = False) -> Recipe:
        """Store a model's answers."""
        recipe = self.recipe(model, single)
        pairs = zip(self.items, self.scores[model], strict=True)
        records = [Record(item=item.id, score=float(score)) for item, score in pairs]
        self.store.add(recipe, "evaluator", {}, "block", self.items, records)
        return recipe

    def show(self, model: int, more: Sequence[int] = (), evaluator: str = "evaluator") -> Look:
        """Measure a soup and show its numbers, with those of further soups."""
        models = [self.keep(one) for one in (model, *more)]
        measurement = Measurement.of(evaluator, models, self.items)
        return self.counted_looks.show_report(self.claim(model), self.items, models, measurement)

    def claim(self, model: int, items: tuple[Item, ...] = ()) -> Claim:
        return Claim(
            soup=self.recipe(model),
            candidates=("m0",),
            evaluator="look",
            objective=Mean(),
            items=items or self.items,
        )

    def run(
        self, model: int, best: int = 0, batch: str = "evaluator", stopped: bool = False
    ) -> tuple[Look, int]:
        """Report a soup against the best candidate of this run: (the look, the candidate that the report has).

        A run that is `stopped` ends once its test answers are stored, before anything is reported.
        """
        absent: Any = None
        held_out = HeldOutItems(
            settings=absent,
            counted_looks=self.counted_looks,
            candidates={f"m{n}": f"m{n}" for n in range(len(self.scores))},
            note=lambda note: None,
        )
        claim = self.claim(model)
        choices = held_out.first_choices(claim, Choices(best=f"m{best}"))

        def measure(stage: Stage, shown: Sequence[Measurement]) -> list[ItemScores]:
            # Answers that were shown are not evaluated again.
            if len(shown) == 1:
                self.keep(model)
            if stopped:
                raise KeyboardInterrupt
            return []

        stage = Stage(name="test", models=(claim.soup,), items=self.items)
        look, _ = held_out.open(claim, stage, Batch(batch), measure, choices=choices)
        return look, int(choices.best[1:])

    def better(
        self, model: int, look: Look, single: int = 0, places: Sequence[int] | None = None
    ) -> bool:
        """Whether a report on the items at `places`, by default all, says that a soup is better than a single model."""
        chosen = np.arange(len(self.items)) if places is None else np.array(places)
        items = [self.items[place] for place in chosen]
        soup = self.scores[model, chosen]
        other = self.scores[single, chosen]
        table = ItemTable.of(items, Mean())
        p_value = p_above(soup, other, look.number, table)
        if p_value >= ALPHA:
            return False
        questions = [item.answer_digest for item in items]
        known = self.counted_looks.scores_of(look.known, questions)
        shown = KnownScores(scores=known, missing=look.known.missing)
        tests = shown.tests(soup, other, table, look.number) if look.number > 1 else 1.0
        return p_value * tests < ALPHA

    def pair(self, a: int, b: int) -> str:
        identities = [item.prompt_digest for item in self.items]
        weights = ItemTable.of(self.items, Mean()).item_weights
        return pair_digest(identities, weights, self.scores[a], self.scores[b])

    def best(self, models: Sequence[int]) -> int:
        return max(models, key=lambda model: float(self.scores[model].mean()))


class Batch(Evaluation):
    """An evaluation that only says how it measures."""

    def __init__(self, name: str) -> None:
        self._name = name

    def measurement(self, models: Sequence[Recipe], items: Sequence[Item]) -> Measurement:
        return Measurement.of(self._name, models, items)


def p_above(a: np.ndarray, b: np.ndarray, look: int, items: ItemTable) -> float:
    """p-value of a above b at a look; with more patterns if it may be small enough."""
    if a.mean() <= b.mean():
        return 1.0
    scores = ScoreTable.complete(items, {"a": a, "b": b})
    rough = contrast(scores, "a", "b", draws=999).p_alone
    if look == 1 or rough > 10 / 999:
        return rough * penalty(look)
    fine = contrast(scores, "a", "b", Level(look), draws=99_999)
    return fine.p_alone * penalty(look)


World = Callable[[np.random.Generator], bool]


def shown_then_picked(rng: np.random.Generator, soups: int = 57, alike: float = 0.5) -> bool:
    """One look shows many soups; the best of them is reported under other candidates."""
    person = Person(rng, soups + 2, alike)
    rest = range(2, soups + 2)
    first = person.show(1, rest)
    best = person.best(rest)
    return person.better(1, first) or person.better(best, person.show(best))


def unlike_soups(rng: np.random.Generator) -> bool:
    return shown_then_picked(rng, alike=0.0)


def opened_often(rng: np.random.Generator) -> bool:
    """Twenty runs report one soup each on the same items (a test split or an extra benchmark); each prints its
    p-value."""
    person = Person(rng, TIMES + 1, 0.5)
    return any(person.better(model, person.show(model)) for model in range(1, TIMES + 1))


def climbed(rng: np.random.Generator, anew: float = 0.2) -> bool:
    """Twenty reports; each soup answers a fifth of the items anew and the others as the best soup so far."""
    person = Person(rng, TIMES + 1, 0.5)
    for model in range(1, TIMES + 1):
        if model > 1:
            best = person.best(range(1, model))
            fresh = rng.random(len(person.items)) < anew
            person.scores[model] = np.where(fresh, person.scores[model], person.scores[best])
        if person.better(model, person.show(model)):
            return True
    return False


def killed(rng: np.random.Generator) -> bool:
    """Twenty runs are killed after their first line, or their items are handed out and the scores read; the soup that
    looked best is reported."""
    person = Person(rng, TIMES + 1, 0.5)
    for model in range(1, TIMES + 1):
        person.show(model)
    best = person.best(range(1, TIMES + 1))
    look = person.show(best)
    return person.better(best, look)


def measured_again(rng: np.random.Generator, same: float = 0.9) -> bool:
    """One claim is measured twenty times, until it is better; each report has the answers that were shown first."""
    person = Person(rng, 2)
    answers = {}
    for number in range(TIMES):
        fresh = person.draw(2)
        anew = rng.random(fresh.shape) >= same
        answers[f"batch {number}"] = np.where(anew, fresh, person.scores)
        look = person.show(1, evaluator=f"batch {number}")
        assert look.number == 1
        person.scores = answers[look.measurements[0].evaluator]
        if person.better(1, look):
            return True
    return False


def renamed(rng: np.random.Generator) -> bool:
    """Answers are drawn at a temperature above 0, and drawn again after the items were renamed."""
    person = Person(rng, 2)
    decoding = Decoding(temperature=1.0)
    for number in range(TIMES):
        named = [replace_id(item, number) for item in person.items]
        for model in range(2):
            seeds = [(decoding.seed_of(item, 0), model) for item in named]
            person.scores[model] = [np.random.default_rng(seed).random() < 0.7 for seed in seeds]
        if person.better(1, person.show(1)):
            return True
    return False


def replace_id(item: Item, number: int) -> Item:
    return Item(id=f"{number} {item.id}", category=item.category, prompt=item.prompt, answer="")


def singles_compared(
    rng: np.random.Generator, singles: int = 60, picked_baseline: bool = False
) -> bool:
    """A report shows sixty single models; the best of them is compared with one of them, or with the worst."""
    person = Person(rng, singles + 1, 0.0)
    for model in range(1, singles + 1):
        person.keep(model, single=True)
    person.show(0)
    order = np.argsort(person.scores[1:].mean(axis=1)) + 1
    baseline = int(order[0]) if picked_baseline else 1
    best = int(order[-1])
    identities = [item.prompt_digest for item in person.items]
    questions = [item.answer_digest for item in person.items]
    look = person.counted_looks.show_comparison("pair", identities, questions)
    table = ItemTable.of(person.items, Mean())
    p_value = p_above(person.scores[best], person.scores[baseline], look.number, table)
    return p_value * (len(look.known.soups) + look.known.missing - 1) < ALPHA


def seeds_until_better(rng: np.random.Generator, candidates: int = 4) -> bool:
    """One soup is reported with twenty seeds of the evaluator, until it is better: each draws other search answers, by
    which another candidate is the best one."""
    person = Person(rng, candidates + 1)
    soup = candidates
    met = set()
    for _ in range(TIMES):
        look, best = person.run(soup, best=int(rng.integers(candidates)))
        assert look.number == 1
        met.add(best)
    return any(person.better(soup, Look(1, first=False), best) for best in met)


def dry_runs_read(rng: np.random.Generator, share: float = 0.8) -> bool:
    """Twenty dry runs under other splits show most test items; the soup that looks best there is reported."""
    person = Person(rng, TIMES + 1, 0.5)
    seen = rng.random(len(person.items)) < share
    items = [item for item, was_seen in zip(person.items, seen, strict=True) if was_seen]
    for model in range(1, TIMES + 1):
        person.counted_looks.note_search(person.recipe(model).fingerprints, items)
    best = 1 + int(person.scores[1:, seen].mean(axis=1).argmax())
    chosen_on = person.counted_looks.chosen_on(person.recipe(best))
    places = [n for n, item in enumerate(person.items) if item.prompt_digest not in chosen_on]
    claim = person.claim(best, tuple(person.items[place] for place in places))
    measurement = Measurement.of("evaluator", [claim.soup], claim.items)
    look = person.counted_looks.show_report(claim, claim.items, [claim.soup], measurement)
    return person.better(best, look, places=places)


def store_read(rng: np.random.Generator, runs: int = TIMES) -> bool:
    """Twenty runs are stopped in the test step, and their answers read in the store; the best soup is reported."""
    person = Person(rng, runs + 1, 0.5)
    for model in range(1, runs + 1):
        with suppress(KeyboardInterrupt):
            person.run(model, stopped=True)
    best = person.best(range(1, runs + 1))
    look, _ = person.run(best)
    return person.better(best, look)


def three_compared(rng: np.random.Generator) -> bool:
    """The soup of a report is compared with two of its candidates at once: the look of the report."""
    person = Person(rng, 3, 0.0)
    soup = 2
    look, best = person.run(soup)
    for single in (0, 1):
        person.counted_looks.note_pairs({person.pair(soup, single): Level(look.number)})
    levels = [person.counted_looks.level_of(person.pair(single, soup)) for single in (0, 1)]
    assert levels == [Level(looks=1), Level(looks=1)]
    return person.better(soup, look, best)


def guards_one_by_one(rng: np.random.Generator, categories: int = 8, n: int = 100) -> bool:
    """Eight guards, one repeated run each, on a soup that loses exactly the margin everywhere."""
    margin = 0.05
    names = [f"c{c}" for c in range(categories)]
    items = tuple(
        Item(id=f"{c} {i}", category=c, prompt=f"{c} {i}", answer="")
        for c in names
        for i in range(n)
    )
    latent = rng.standard_normal(len(items)) * math.sqrt(HARD)
    noise = rng.standard_normal((2, len(items))) * math.sqrt(1 - HARD)
    right = latent + noise < np.array([[0.385], [0.5244]])  # 65 and 70 %
    soup = ItemScores(items=items, values=right[0].astype(float))
    single = ItemScores(items=items, values=right[1].astype(float))
    for name in names:
        guard = Guard(name=name, margin=margin, categories=(name,))
        # Names are the categories and `tokens`, against one candidate.
        (found,) = guard_tests([guard], [(soup, single)], limits=categories + 1)
        if found.outcome == "held":
            return True
    return False


WORLDS: dict[str, World] = {
    "57 soups shown, the best is reported": shown_then_picked,
    "the same, soups unlike each other": unlike_soups,
    "20 soups reported on the same items": opened_often,
    "20 reports, each soup near the best so far": climbed,
    "20 runs killed after their first line, or handed out and read, then the best": killed,
    "best of 20 measurements, 90 % of the answers alike": measured_again,
    "the same, 80 % alike": partial(measured_again, same=0.8),
    "sampled answers under 20 other ids": renamed,
    "60 single models shown, the best compared with one of them": singles_compared,
    "eight guards one by one": guards_one_by_one,
    "20 evaluator seeds until better, 4 candidates": seeds_until_better,
    "20 evaluator seeds until better, 8 candidates": partial(seeds_until_better, candidates=8),
    "20 dry runs under other splits, then the best": dry_runs_read,
    "20 runs stopped in the test step and their store read, then the best": store_read,
    "the same, 3 runs": partial(store_read, runs=3),
    "a report's soup compared with two of its candidates": three_compared,
}
BEYOND: dict[str, World] = {
    "60 single models shown, the best compared with the worst": partial(
        singles_compared, picked_baseline=True
    ),
}


def rerun_after_a_crash(person: Person) -> int:
    with suppress(KeyboardInterrupt):
        person.run(1, stopped=True)
    look, _ = person.run(1)
    return look.number


def other_batch_size(person: Person) -> int:
    person.run(1)
    look, _ = person.run(1, batch="batch size 4")
    return look.number


def rerun_with_other_batch_size(person: Person) -> int:
    with suppress(KeyboardInterrupt):
        person.run(1, stopped=True)
    look, _ = person.run(1, batch="batch size 4")
    return look.number


def swapped_comparison(person: Person) -> int:
    look, _ = person.run(1)
    person.counted_looks.note_pairs({person.pair(1, 0): Level(look.number)})
    level = person.counted_looks.level_of(person.pair(0, 1))
    assert level is not None
    return level.looks


def near_weights(person: Person) -> int:
    """Repeats of a claim add nothing to the soups that are tested together at the next look."""
    for _ in range(8):
        person.run(1)
    look, _ = person.run(2)
    assert look.number == 2
    return len(look.known.soups) + look.known.missing


HONEST: dict[str, Callable[[Person], int]] = {
    "crash and rerun of the same claim": rerun_after_a_crash,
    "other batch size": other_batch_size,
    "crash, then a rerun with another batch size": rerun_with_other_batch_size,
    "swapped comparison": swapped_comparison,
    "soups known after eight repeats of a claim": near_weights,
}


def limit(repetitions: int) -> float:
    """Share of false claims above which a world fails."""
    return LEVEL + 3 * math.sqrt(LEVEL * (1 - LEVEL) / repetitions)


def claims(world: World, repetitions: Iterable[int], seed: int = 0) -> int:
    """In how many of the repetitions, by number, somebody in a world claims something false."""
    return sum(world(np.random.default_rng([seed, number])) for number in repetitions)


def share(world: World, repetitions: int, seed: int = 0) -> float:
    """How often somebody in a world claims something false."""
    return claims(world, range(repetitions), seed) / repetitions


class Tally:
    """False claims, repetitions and seconds of each world; kept in a file, if there is one, after every chunk."""

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self.worlds: dict[str, list[float]] = {}
        if file is not None and file.exists():
            self.worlds = json.loads(file.read_text(encoding="utf-8"))

    def run(self, name: str, world: World, repetitions: int, seed: int) -> list[float]:
        """[false claims, repetitions, seconds], after as many repetitions as are missing."""
        found = self.worlds.setdefault(name, [0, 0, 0.0])
        while found[1] < repetitions:
            start = time.perf_counter()
            first = int(found[1])
            last = min(first + CHUNK, repetitions)
            found[0] += claims(world, range(first, last), seed)
            found[1] = last
            found[2] += time.perf_counter() - start
            if self.file is not None:
                self.file.write_text(json.dumps(self.worlds, indent=1), encoding="utf-8")
        return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--only", nargs="*", default=[], help="worlds whose name has one of these")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rows", type=Path)
    parser.add_argument("--date", default=str(datetime.date.today()))
    args = parser.parse_args()
    lines = [
        f"# Looks, {args.date}",
        "\n`python -m benchmarks.looks`\n",
        "| world | repetitions | false claims % | at most % | seconds |\n|---|---|---|---|---|",
    ]
    failed = False
    tally = Tally(args.rows)
    for seed, (name, world) in enumerate({**WORLDS, **BEYOND}.items()):
        if args.only and not any(text in name for text in args.only):
            continue
        false, repetitions, seconds = tally.run(name, world, args.repetitions, seed)
        found = false / repetitions
        most = "none"
        if name in WORLDS:
            failed |= found > limit(int(repetitions))
            most = f"{100 * limit(int(repetitions)):.2f}"
        cells = (name, f"{repetitions:,}", f"{100 * found:.2f}", most, f"{seconds:.0f}")
        lines.append(f"| {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    lines.append("\n| honest path | look |\n|---|---|")
    for name, path in HONEST.items():
        look = path(Person(np.random.default_rng(0), 3))
        failed |= look != 1
        lines.append(f"| {name} | {look} |")
        print(lines[-1], flush=True)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text("\n".join(lines) + "\n", encoding="utf-8")
    raise SystemExit(int(failed))


if __name__ == "__main__":
    main()

"""CountedLooks of the test split. Each way to look twice and pay once, with the look that it is told to be."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from souping.answers.claims import (
    Claim,
    KnownModels,
    Look,
    Measurement,
    evaluator_digest,
    items_to_report,
    pair_digest,
    times,
)
from souping.answers.counted_looks import CountedLooks
from souping.answers.evaluation import Evaluation
from souping.answers.report_choices import Choices
from souping.answers.store import Store
from souping.core.scores import Mean, Weighted, WorstCategory
from souping.core.types import Item, Recipe, Record, UserError
from souping.core.unit import BITS_PER_BYTE
from souping.evaluate.benchmark import Benchmark
from souping.evaluate.generate import LocalEvaluator
from souping.report.content import SplitSizes
from souping.runs.held_out import HeldOutItems, split_sizes
from souping.runs.run import Run
from souping.statistics.corrections import Level
from tests.conftest import ROOT, claim, command_line, make_items, pool_of, recipe, show_report
from tests.support.steps import run_settings

ITEMS = make_items(4)
MANY = [replace(item, prompt=f"{item.category} {item.prompt}") for item in make_items(100)]
HALF = recipe(0.5, 0.5)
OTHER = recipe(0.3, 0.7)


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with Store(tmp_path / "s") as one:
        yield one


@pytest.fixture
def counted_looks(store: Store) -> CountedLooks:
    return CountedLooks(store)


def number(counted_looks: CountedLooks, claim: Claim) -> int:
    return show_report(counted_looks, claim).number


def answer(store: Store, soup: Recipe, items: Sequence[Item], score: float = 1.0) -> None:
    """Store answers of a soup."""
    records = [Record(item=item.id, score=score, output="o") for item in items]
    store.add(soup, "e", {}, "block", items, records)


class TestClaims:
    def test_a_claim_that_is_made_again_keeps_its_look(self, counted_looks: CountedLooks) -> None:
        soups = (HALF, OTHER, HALF, OTHER, recipe(0.8, 0.2), OTHER)
        looks = [number(counted_looks, claim(soup, ITEMS)) for soup in soups]
        assert looks == [1, 2, 1, 2, 3, 2]

    @pytest.mark.parametrize(
        "other",
        [
            claim(HALF, ITEMS, Weighted(category_weights={"w": 2.0, "x": 1.0})),
            claim(HALF, [replace(item, answer="another") for item in ITEMS]),
            claim(HALF, ITEMS, candidates=("f-a", "f-b", "f-c")),
            claim(HALF, ITEMS[:-1]),
            claim(HALF, [item for item in ITEMS if item.category == "x"]),
            replace(claim(HALF, ITEMS), evaluator="another template"),
            claim(recipe(1.0, 0.0), ITEMS),
            claim(replace(HALF, dtype="F32"), ITEMS),
            claim(recipe(0.501, 0.499), ITEMS),
        ],
        ids=[
            "objective",
            "key",
            "candidate",
            "item",
            "category",
            "evaluator",
            "single",
            "dtype",
            "weights",
        ],
    )
    def test_whatever_a_claim_rests_on_makes_another_claim(
        self, counted_looks: CountedLooks, other: Any
    ) -> None:
        looks = [number(counted_looks, one) for one in (claim(HALF, ITEMS), other, other)]
        assert looks == [1, 2, 2]

    def test_an_objective_that_is_no_weighted_mean_counts_by_its_name(self) -> None:
        """Its weights of items are those of the mean."""
        mean, worst = claim(HALF, ITEMS), claim(HALF, ITEMS, WorstCategory())
        assert mean.fingerprint != worst.fingerprint
        assert worst.fingerprint == claim(HALF, ITEMS, WorstCategory()).fingerprint
        weighted = Weighted(category_weights={"w": 1.0, "x": 1.0})
        assert mean.fingerprint == claim(HALF, ITEMS, weighted).fingerprint

    def test_names_order_rounding_and_margin_make_no_other_claim(
        self, counted_looks: CountedLooks
    ) -> None:
        renamed = [
            replace(item, id=f"x{item.id}", category=f"c {item.category}", group="g")
            for item in ITEMS[::-1]
        ]
        names = Recipe(
            ingredients=("y", "x"),
            fingerprints=("f-b", "f-a"),
            weights=(0.5, 0.5 + 4e-4),
            dtype="BF16",
        )
        for one in (
            claim(HALF, ITEMS),
            claim(HALF, renamed),
            claim(names, ITEMS, candidates=("f-b", "f-a")),
        ):
            assert number(counted_looks, one) == 1

    def test_looks_are_counted_by_item(self, counted_looks: CountedLooks) -> None:
        one = make_items(4, ("w",))
        two = make_items(8, ("w",))
        assert number(counted_looks, claim(HALF, one)) == 1
        assert number(counted_looks, claim(HALF, two[4:])) == 1
        assert number(counted_looks, claim(OTHER, two)) == 2
        others = (one, two[4:], make_items(9, ("z",))[8:])
        announced = [counted_looks.announcement(items) for items in others]
        assert ["look 3" in text for text in announced] == [True, True, False]

    def test_a_look_says_how_often_the_items_were_reported_on(
        self, counted_looks: CountedLooks
    ) -> None:
        assert [times(count) for count in (1, 2, 3)] == ["once", "2 times", "3 times"]
        soups = [recipe(w, 1 - w) for w in (0.2, 0.4, 0.6)]
        looks = [show_report(counted_looks, claim(soup, ITEMS)) for soup in soups]
        assert "on once before: this is look 2, so its p-values are multiplied by 6 " in looks[
            1
        ].sentence().replace("reported ", "")
        assert "on 2 times before: this is look 3" in looks[2].sentence()

    def test_a_comparison_that_is_shown_again_keeps_its_look(
        self, counted_looks: CountedLooks
    ) -> None:
        names = [item.prompt_digest for item in ITEMS]
        questions = [item.answer_digest for item in ITEMS]
        assert counted_looks.number_of("first", names) == 1
        assert counted_looks.number_of("first", []) == 1
        assert counted_looks.show_comparison("first", names, questions).number == 1
        assert (counted_looks.number_of("first", names), counted_looks.number_of("x", names)) == (
            1,
            2,
        )
        assert counted_looks.show_comparison("second", names[:1], questions[:1]).number == 2
        assert [counted_looks.number_of("x", [name]) for name in names[:2]] == [3, 2]

    def test_the_level_of_a_pair_is_that_of_the_report_that_showed_it_first(
        self, counted_looks: CountedLooks
    ) -> None:
        assert counted_looks.level_of("pair") is None
        counted_looks.note_pairs({"pair": Level(looks=2, tests=5.0), "other": Level()})
        counted_looks.note_pairs({"pair": Level(looks=3, tests=7.0)})
        assert counted_looks.level_of("pair") == Level(looks=2, tests=5.0)
        assert counted_looks.level_of("other") == Level(looks=1, tests=1.0)

    def test_deleted_rows_count_as_looks(self, counted_looks: CountedLooks, store: Store) -> None:
        number(counted_looks, claim(HALF, ITEMS))
        number(counted_looks, claim(HALF, ITEMS))
        counted_looks.note_search(["f-a"], ITEMS)
        counted_looks.note_search(["f-a"], ITEMS)
        assert counted_looks.deleted() == 0
        with store.writing() as db:
            db.execute("DELETE FROM counted_looks")
        assert counted_looks.deleted() == 1
        assert number(counted_looks, claim(HALF, ITEMS)) == 2
        assert number(counted_looks, claim(OTHER, make_items(20)[-1:])) == 2

    @pytest.mark.parametrize("table", ["members", "contents"])
    def test_a_set_that_lost_items_counts_as_a_deleted_row_for_each_look_and_search(
        self, counted_looks: CountedLooks, store: Store, table: str
    ) -> None:
        number(counted_looks, claim(HALF, ITEMS))
        number(counted_looks, claim(OTHER, ITEMS))
        counted_looks.note_search(["f-a"], ITEMS)
        counted_looks.note_view("another", [item.prompt_digest for item in ITEMS[:2]])
        assert counted_looks.deleted() == 0
        with store.writing() as db:
            db.execute(f"DELETE FROM {table}")
        assert counted_looks.deleted() == 3
        assert number(counted_looks, claim(recipe(0.1, 0.9), MANY)) == 1 + 3

    def test_nothing_is_counted_before_it_is_shown(self, counted_looks: CountedLooks) -> None:
        crashed = claim(HALF, ITEMS)
        assert counted_looks.items_of(crashed) == tuple(ITEMS)
        assert number(counted_looks, claim(OTHER, ITEMS)) == 1
        # What it would have been is not kept: another claim was shown meanwhile.
        assert number(counted_looks, crashed) == 2

    def test_another_measurement_is_the_same_look_and_is_kept(
        self, counted_looks: CountedLooks
    ) -> None:
        one = claim(HALF, ITEMS)
        looks = [
            show_report(counted_looks, one, evaluator=name)
            for name in ("batch 8", "batch 4", "batch 8")
        ]
        assert [look.number for look in looks] == [1, 1, 1]
        measured = [measurement.evaluator for measurement in looks[-1].measurements]
        assert measured == ["batch 8", "batch 4"]

    def test_the_order_of_models_and_ingredients_makes_nothing_new(
        self, counted_looks: CountedLooks
    ) -> None:
        models = [HALF, OTHER]
        for order in (models, models[::-1]):
            counted_looks.show_report(
                claim(HALF, ITEMS), ITEMS, [], Measurement.of("e", order, ITEMS)
            )
        first = counted_looks.show_report(
            claim(HALF, ITEMS), ITEMS, [], Measurement.of("e", models, ITEMS)
        )
        assert len(first.measurements) == 1
        swapped = recipe(0.5, 0.5, names=("b", "a"))
        for soup in (HALF, swapped):
            show_report(counted_looks, claim(soup, ITEMS), models=[soup])
        assert show_report(counted_looks, claim(OTHER, ITEMS)).known == KnownModels((), missing=1)

    def test_ids_of_renamed_items_are_another_measurement(
        self, counted_looks: CountedLooks
    ) -> None:
        renamed = [replace(item, id=f"new {item.id}") for item in ITEMS]
        show_report(counted_looks, claim(HALF, ITEMS))
        look = show_report(counted_looks, claim(HALF, renamed))
        assert (look.number, len(look.measurements)) == (1, 2)

    def test_repeats_of_a_claim_show_no_other_soup(self, counted_looks: CountedLooks) -> None:
        """However many weights within the rounding of a claim are tried."""
        near = [recipe(0.5 + step * 1e-4, 0.5 - step * 1e-4) for step in range(-4, 5)]
        for soup in near:
            assert number(counted_looks, claim(soup, ITEMS)) == 1
        look = show_report(counted_looks, claim(OTHER, ITEMS))
        assert (look.number, look.known) == (2, KnownModels((), missing=1))

    def test_choices_are_those_of_the_first_report_that_has_any(
        self, counted_looks: CountedLooks, store: Store
    ) -> None:
        one = claim(HALF, ITEMS)
        measurement = Measurement.of("e", [HALF], ITEMS)
        for choices, kept in (("", ""), ("first", "first"), ("second", "first")):
            counted_looks.show_report(one, ITEMS, [HALF], measurement, choices=choices)
            assert counted_looks.choices(one) == kept
        assert counted_looks.choices(claim(OTHER, ITEMS)) == ""
        with store.writing() as db:
            db.execute("DELETE FROM choices")
        assert counted_looks.deleted() == 1

    def test_choices_are_found_under_other_names(self) -> None:
        items = [*MANY[:4], *MANY[100:104]]
        first = Choices(best="a", top=("a", "b"), routes={"w": "a", "x": "b"})
        row = first.to_row({"a": "f-a", "b": "f-b", "c": "f-c"}, items)
        renamed = [replace(item, category=f"c {item.category}") for item in items[::-1]]
        today = Choices(best="y", top=("x", "y"), routes={"c w": "z", "c x": "z"})
        found = today.as_first_shown(row, {"z": "f-c", "y": "f-b", "x": "f-a"}, renamed)
        assert found == Choices(best="x", top=("y", "x"), routes={"c w": "x", "c x": "y"})

    def test_choices_among_candidates_of_the_same_bytes_stay_those_that_were_made(self) -> None:
        items = [*MANY[:4], *MANY[100:104]]
        candidates = {"a": "f-a", "twin": "f-a", "b": "f-b"}
        for best, top in (("a", ("a", "twin", "b")), ("twin", ("twin", "b"))):
            first = Choices(best=best, top=top, routes={"w": "twin", "x": "b"})
            assert first.as_first_shown(first.to_row(candidates, items), candidates, items) == first

    def test_categories_with_the_same_prompts_keep_their_own_routes(self) -> None:
        items = [replace(item, category=name) for name in "wx" for item in MANY[:4]]
        first = Choices(best="a", routes={"w": "a", "x": "b"})
        candidates = {"a": "f-a", "b": "f-b"}
        assert first.as_first_shown(first.to_row(candidates, items), candidates, items) == first

    def test_a_difference_has_no_scale_of_its_weights(self) -> None:
        weights = np.array([1.0, 2.0, 5.0])
        a = np.array([1.0, 0.0, 1.0])
        names = ["p", "q", "r"]
        one = pair_digest(names, weights, a, 1 - a)
        assert one == pair_digest(names, 3 * weights, a, 1 - a)
        assert one == pair_digest(names, weights / weights.sum(), 1 - a, a)
        assert one != pair_digest(names, weights[::-1], a, 1 - a)
        # Stores hold such digests.
        thirds = pair_digest(names, np.ones(3), a, 1 - a)
        assert thirds == "f5466c5d772b3c91de3a95119668a5cfbd3483b9d66a9e35fbdeda24b8461958"

    def test_guards_are_those_of_the_first_report(self, counted_looks: CountedLooks) -> None:
        one = claim(HALF, ITEMS)
        assert show_report(counted_looks, one, guards="first").guards == "first"
        assert show_report(counted_looks, one, guards="second").guards == "first"

    def test_another_machine_batch_or_draw_is_the_same_look(self) -> None:
        base = LocalEvaluator(device="cpu", temperature=0.5)
        for change in (
            {"batch_size": 3},
            {"threads": 2},
            {"workers": 2},
            {"seed": 7},
            {"repeats": 4},
        ):
            assert evaluator_digest(replace(base, **change)) == evaluator_digest(base)  # type: ignore[arg-type]
        others = [
            replace(base, max_new_tokens=3),
            replace(base, temperature=0.4),
            replace(base, dtype="bfloat16"),
        ]
        for other in others:
            assert evaluator_digest(other) != evaluator_digest(base)
        passing = replace(base, repeats=4, aggregate="pass")
        assert evaluator_digest(replace(passing, repeats=8)) != evaluator_digest(passing)

    def test_a_look_that_was_shown_survives_a_kill(self, tmp_path: Path) -> None:
        code = f"""
import os
from pathlib import Path
from souping.answers.counted_looks import CountedLooks
from souping.answers.store import Store
from tests.conftest import claim, make_items, recipe, show_report
show_report(CountedLooks(Store(Path({str(tmp_path / "killed")!r}))), claim(recipe(0.5, 0.5), make_items(4)))
os.kill(os.getpid(), 9)
"""
        killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
        assert killed.returncode == -9
        with Store(tmp_path / "killed") as store:
            assert number(CountedLooks(store), claim(OTHER, ITEMS)) == 2


class TestItems:
    """Which items a new report is made on. Groups of two; a group leaves whole."""

    def test_few_shared_groups_leave_and_the_rest_is_a_first_look(
        self, counted_looks: CountedLooks
    ) -> None:
        for soup in (HALF, OTHER):
            assert number(counted_looks, claim(soup, MANY[:3])) in (1, 2)
        later = claim(recipe(0.9, 0.1), MANY)
        items = counted_looks.items_of(later)
        assert items == tuple(MANY[4:])
        assert number(counted_looks, later) == 1

    def test_a_repeated_claim_is_reported_on_its_own_items(
        self, counted_looks: CountedLooks
    ) -> None:
        number(counted_looks, claim(OTHER, MANY[:3]))
        first = claim(HALF, MANY)
        assert number(counted_looks, first) == 1
        number(counted_looks, claim(recipe(0.9, 0.1), MANY[10:20]))
        assert counted_looks.items_of(first) == tuple(MANY[4:])
        assert show_report(counted_looks, first).first is False

    @pytest.mark.parametrize(
        ("share", "earlier_looks", "leave"),
        [(0.44, 1, True), (0.46, 1, False), (0.52, 2, True), (0.54, 2, False)],
    )
    def test_items_leave_if_that_is_cheaper(
        self, share: float, earlier_looks: int, leave: bool
    ) -> None:
        items = [item for item in make_items(500) if item.category == "w"]
        shown = round(share * len(items))
        counts = Counter({item.prompt_digest: earlier_looks for item in items[:shown]})
        kept = items_to_report(items, counts, Mean())
        assert len(kept) == (len(items) - shown if leave else len(items))

    @pytest.mark.parametrize("seed", range(12))
    def test_items_are_those_that_tell_most_over_the_price_of_the_look(self, seed: int) -> None:
        """By all limits of looks: 1 / (variance z^2), with w^2 / n of each category, and z at the look's level."""
        rng = np.random.default_rng(seed)
        items = []
        for name in "wx":
            for item in make_items(int(rng.integers(18, 70)), (name,)):
                items.append(replace(item, prompt=f"{name} {item.prompt}"))
        weights = {"w": 1.0, "x": float(rng.choice([0.25, 1.0, 8.0]))}
        groups = sorted({item.group for item in items})
        looks = dict(zip(groups, rng.choice(3, len(groups), p=[0.8, 0.1, 0.1]), strict=True))
        deleted = int(rng.integers(0, 2))
        counts = {item.prompt_digest: int(looks[item.group]) for item in items}

        def worth(kept: list[Item]) -> float:
            variance = 0.0
            for name in "wx":
                size = sum(item.category == name for item in items)
                count = sum(item.category == name for item in kept)
                if count < min(size, 20):
                    return 0.0
                variance += (weights[name] / sum(weights.values())) ** 2 / count
            look = 1 + deleted + max(looks[item.group] for item in kept)
            factor = look * (look + 1) if look > 1 else 1
            return float(1 / variance / norm.isf(0.05 / factor / 2) ** 2)

        choices = [[item for item in items if looks[item.group] <= limit] for limit in (2, 1, 0)]
        objective = Weighted(category_weights=weights)
        found = items_to_report(items, counts, objective, deleted)
        best = max(choices, key=worth)
        assert found == tuple(best)

    @pytest.mark.parametrize(("kept", "leave"), [(54, False), (56, True)])
    def test_items_of_a_category_count_by_the_square_of_its_weight(
        self, kept: int, leave: bool
    ) -> None:
        """Of 100 items with the weight 0.9, and 100 with 0.1: the variance grows by 1.84 or 1.78; look 2 costs 1.81."""
        items = [replace(item, prompt=f"{item.category} {item.prompt}") for item in make_items(100)]
        heavy = [item for item in items if item.category == "x"]
        counts = Counter({item.prompt_digest: 1 for item in heavy[kept:]})
        objective = Weighted(category_weights={"w": 0.1, "x": 0.9})
        assert len(items_to_report(items, counts, objective)) == (100 + kept if leave else 200)

    def test_a_category_keeps_twenty_items_or_all(self) -> None:
        for size, shown, left in ((24, 4, 20), (24, 6, 24), (12, 2, 12)):
            items = make_items(size, ("w",))
            counts = Counter({item.prompt_digest: 3 for item in items[:shown]})
            assert len(items_to_report(items, counts, Mean())) == left


class TestKnownModels:
    def test_all_soups_with_known_scores_are_tested_together(
        self, counted_looks: CountedLooks, store: Store
    ) -> None:
        soups = [recipe(w, 1 - w) for w in (0.2, 0.4, 0.6)]
        for soup in (HALF, *soups, recipe(1.0, 0.0)):
            answer(store, soup, ITEMS[:3])
        assert show_report(counted_looks, claim(HALF, ITEMS), models=soups).known == KnownModels()
        look = show_report(counted_looks, claim(OTHER, ITEMS))
        assert look.number == 2
        assert {*look.known.soups} == {soup.fingerprint for soup in (HALF, *soups)}
        questions = [item.answer_digest for item in ITEMS]
        scores = counted_looks.scores_of(look.known, questions)
        assert scores.shape == (4, len(ITEMS))
        assert np.isfinite(scores).sum(axis=1).tolist() == [3] * 4

    def test_a_shown_soup_without_answers_counts_alone(self, counted_looks: CountedLooks) -> None:
        show_report(counted_looks, claim(HALF, ITEMS), models=[OTHER])
        assert show_report(counted_looks, claim(recipe(0.9, 0.1), ITEMS)).known == KnownModels(
            (), 2
        )

    def test_a_family_stays_as_it_was_when_the_claim_was_first_shown(
        self, counted_looks: CountedLooks, store: Store
    ) -> None:
        for soup in (HALF, OTHER):
            answer(store, soup, ITEMS)
            family = show_report(counted_looks, claim(soup, ITEMS)).known
        answer(store, recipe(0.9, 0.1), ITEMS)
        show_report(counted_looks, claim(recipe(0.9, 0.1), ITEMS))
        assert show_report(counted_looks, claim(OTHER, ITEMS)).known == family

    def test_single_models_are_in_that_of_a_comparison(
        self, counted_looks: CountedLooks, store: Store
    ) -> None:
        singles = [recipe(1.0, names=(name,)) for name in "abc"]
        for model in (HALF, *singles):
            answer(store, model, ITEMS)
        show_report(counted_looks, claim(HALF, ITEMS), models=singles)
        identities = [item.prompt_digest for item in ITEMS]
        questions = [item.answer_digest for item in ITEMS]
        look = counted_looks.show_comparison("pair", identities, questions)
        assert look.number == 2
        assert len(look.known.soups) == 4
        assert counted_looks.show_comparison("pair", identities, questions).number == 2

    def test_soups_of_soups_are_soups(
        self, counted_looks: CountedLooks, store: Store, tmp_path: Path
    ) -> None:
        store.remember_folder("f-s", tmp_path, "s", json.dumps({"f-a": 0.5, "f-b": 0.5}))
        # edited: it names itself
        store.remember_folder("f-t", tmp_path, "t", json.dumps({"f-s": 0.5, "f-t": 0.5}))
        store.remember_folder("f-s", tmp_path, "s", "")  # its recipe.json was deleted
        written = [recipe(1.0, names=(name,)) for name in "st"]
        for model in written:
            answer(store, model, ITEMS)
        show_report(counted_looks, claim(written[0], ITEMS), models=written[1:])
        look = show_report(counted_looks, claim(OTHER, ITEMS))
        assert {*look.known.soups} == {model.fingerprint for model in written}


class TestSearches:
    def test_a_search_over_one_of_the_ingredients_is_enough(
        self, counted_looks: CountedLooks
    ) -> None:
        counted_looks.note_search(["f-a", "f-b"], ITEMS[:2])
        counted_looks.note_search(["f-b", "f-c"], ITEMS[1:3])
        identities = [item.prompt_digest for item in ITEMS]
        assert counted_looks.chosen_on(recipe(0.5, 0.5, names=("a", "d"))) == set(identities[:2])
        assert counted_looks.chosen_on(recipe(0.1, 0.9)) == set(identities[:3])
        assert counted_looks.chosen_on(recipe(1.0, names=("d",))) == set()


class TestHeldOutItems:
    """What a run says to the reader of its report of the items that it may report on."""

    @pytest.fixture
    def notes(self) -> list[str]:
        return []

    @pytest.fixture
    def held_out(self, counted_looks: CountedLooks, notes: list[str]) -> HeldOutItems:
        return HeldOutItems(
            settings=run_settings(candidates="ab"),
            counted_looks=counted_looks,
            candidates={"a": "f-a", "b": "f-b"},
            note=notes.append,
        )

    def test_items_that_a_search_saw_are_left_out(
        self, held_out: HeldOutItems, notes: list[str]
    ) -> None:
        items = tuple(MANY)
        assert held_out.report_claim(HALF, items).items == items
        assert notes == []
        held_out.counted_looks.note_search(["f-a"], items[:3])
        found = held_out.report_claim(HALF, items)
        assert found.items == items[3:]
        assert (found.candidates, found.soup) == (("f-a", "f-b"), HALF)
        assert [note.split(":")[0] for note in notes] == ["3 of 200 test items are left out"]
        assert split_sizes({"select": 5, "search": 7, "test": 200}, found, found.items[2:]) == (
            SplitSizes(select=5, search=7, test=195, left_out=3, shown=2)
        )
        dry = replace(held_out, settings=replace(held_out.settings, dry_run=2))
        assert dry.report_claim(HALF, items).items == items
        held_out.counted_looks.note_search(["f-b"], items[:100])
        with pytest.raises(UserError, match="category w"):
            held_out.report_claim(HALF, items)

    def test_items_that_reports_showed_and_deleted_rows_are_noted(
        self, held_out: HeldOutItems, notes: list[str], store: Store
    ) -> None:
        first = claim(OTHER, MANY[:3])
        assert held_out.items_of(first) == tuple(MANY[:3])
        number(held_out.counted_looks, first)
        assert held_out.items_of(claim(HALF, MANY)) == tuple(MANY[4:])
        assert [note.split(":")[0] for note in notes] == ["4 of 200 test items are left out"]
        with store.writing() as db:
            db.execute("DELETE FROM measured")
        assert len(held_out.items_of(claim(OTHER, MANY[:3]))) == 3
        assert notes[-1].startswith("1 rows of the looks in store.sqlite were deleted")

    def test_the_first_report_of_a_claim_chooses_for_all(self, held_out: HeldOutItems) -> None:
        one = claim(HALF, ITEMS)
        today = Choices(best="a")
        assert held_out.first_choices(one, today) == today
        row = Choices(best="b").to_row(held_out.candidates, ITEMS)
        measurement = Measurement.of("e", [HALF], ITEMS)
        held_out.counted_looks.show_report(one, ITEMS, [HALF], measurement, choices=row)
        assert held_out.first_choices(one, today) == Choices(best="b")

    def test_scores_of_known_models_are_in_inner_units(
        self, held_out: HeldOutItems, store: Store
    ) -> None:
        answer(store, OTHER, ITEMS[:2], score=0.5)
        look = Look(2, first=True, known=KnownModels((OTHER.fingerprint,), missing=3))
        found = held_out.family_scores(look, ITEMS, BITS_PER_BYTE)
        assert found.scores[0, :2].tolist() == [0.5 * BITS_PER_BYTE.factor] * 2
        assert np.isnan(found.scores[0, 2:]).all()
        assert found.missing == 3


# ------------------------------------------------------------ whole runs


@dataclass
class Runs:
    family: Path
    place: Path

    def __call__(
        self, *arguments: str, pool: Sequence[str | Path] = ("ant", "bee", "cat"), items: str = ""
    ) -> None:
        own = f"benchmark.path={self.place / (items or 'items.jsonl')}"
        base = [*pool_of(self.family, *map(str, pool)), own, "selector=all", "optimiser=fixed"]
        words = sorted([*base, *arguments], key=lambda word: word != "-m")
        assert command_line(self.place, *words) == 0

    def report(self, *arguments: str, **where: Any) -> Mapping[str, Any]:
        run_dir = f"runs/{len(list(self.place.glob('runs/*')))}"
        self(*arguments, f"hydra.run.dir={run_dir}", **where)
        report: Mapping[str, Any] = json.loads((self.place / run_dir / "report.json").read_text())
        return report

    def look(self, *arguments: str, **where: Any) -> int:
        return int(self.report(*arguments, **where)["verdict"]["look"])

    def rewrite(self, name: str, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> str:
        rows = [json.loads(line) for line in (self.place / "items.jsonl").read_text().splitlines()]
        (self.place / name).write_text(
            "\n".join(json.dumps(row) for row in map(change, rows) if row)
        )
        return name

    def rows(self, query: str) -> list[Any]:
        with closing(sqlite3.connect(self.place / "outputs/store.sqlite")) as db:
            found = db.execute(query).fetchall()
            db.commit()
        return found


SOUP = "optimiser.weights=[0.5,0.2,0.3]"


@pytest.fixture(scope="module")
def first(family: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which one soup was reported: look 1. Shown were that soup and the uniform one."""
    place = tmp_path_factory.mktemp("first")
    lines = (family / "items.jsonl").read_text().splitlines()
    (place / "items.jsonl").write_text("\n".join(lines[:30] + lines[60:90] + lines[120:150]))
    assert Runs(family, place).look(SOUP) == 1
    return place


@pytest.fixture
def runs(family: Path, first: Path, tmp_path: Path) -> Runs:
    shutil.copytree(first, tmp_path / "w")
    return Runs(family, tmp_path / "w")


@pytest.fixture
def fresh(family: Path, first: Path, tmp_path: Path) -> Runs:
    (tmp_path / "w").mkdir()
    shutil.copy(first / "items.jsonl", tmp_path / "w")
    return Runs(family, tmp_path / "w")


def test_the_same_claim_renamed_and_in_another_order_is_free(runs: Runs) -> None:
    renamed = runs.rewrite("renamed.jsonl", lambda row: {**row, "id": f"new {row['id']}"})
    assert runs.look(SOUP) == runs.look(SOUP, items=renamed) == 1
    assert runs.look("optimiser.weights=[0.3,0.5,0.2]", pool=("cat", "ant", "bee")) == 1


@pytest.mark.slow
def test_settings_compared_on_the_search_split_are_free(fresh: Runs) -> None:
    weights = "optimiser.weights=[0.5,0.2,0.3],[0.2,0.2,0.6],[0.2,0.6,0.2]"
    fresh("-m", weights, "stop_after=search", "hydra.sweep.dir=sweep")
    jobs = [json.loads(path.read_text()) for path in sorted(fresh.place.glob("sweep/*/job.json"))]
    best = max(jobs, key=lambda job: job["objective"])
    assert fresh.look(next(word for word in best["overrides"] if "weights" in word)) == 1


def test_another_objective_on_the_same_items_is_a_second_look(runs: Runs) -> None:
    report = runs.report(
        SOUP, "objective=weighted", "objective.category_weights={red:2,green:1,blue:1}"
    )
    assert report["verdict"]["look"] == 2
    assert any("look 2" in warning for warning in report["warnings"])


def test_another_margin_or_batch_size_is_free(runs: Runs) -> None:
    assert runs.look(SOUP, "min_gain=2") == 1
    report = runs.report(SOUP, "evaluator.batch_size=5", "evaluator.threads=2")
    assert report["verdict"]["look"] == 1
    assert any("are reported again" in warning for warning in report["warnings"])


@pytest.mark.slow
def test_the_first_measurement_that_was_shown_stands(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often a claim is repeated with other batches, draws or ids."""
    first = runs.report(SOUP)

    def answer_wrong(*_: Any) -> Any:
        raise AssertionError("test items were evaluated again")

    monkeypatch.setattr(Evaluation, "scores", answer_wrong)
    renamed = runs.rewrite("again.jsonl", lambda row: {**row, "id": f"again {row['id']}"})
    for changes in (["evaluator.batch_size=5"], ["evaluator.seed=3"]):
        report = runs.report(SOUP, *changes, items=renamed)
        assert [row["objective"] for row in report["rows"]] == [
            row["objective"] for row in first["rows"]
        ]
        assert report["verdict"] == first["verdict"]


def test_a_look_is_written_before_the_first_answer(
    fresh: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(self: Run, stage: Any, *rest: Any) -> Any:
        if stage.split == "test":
            looks.extend(fresh.rows("SELECT number FROM counted_looks"))
            raise KeyboardInterrupt
        return original(self, stage, *rest)

    looks: list[Any] = []
    original = Run._measure
    monkeypatch.setattr(Run, "_measure", measure)
    with pytest.raises((KeyboardInterrupt, AssertionError, SystemExit)):
        fresh.report(SOUP)
    assert looks == [(1,)]


def test_a_repeated_claim_meets_the_other_models_of_its_first_report(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other draws of the select and search answers choose another best candidate, top-K soup and router."""
    first = runs.report(SOUP)
    (best,) = [row["name"] for row in first["rows"] if row["kind"] == "best_candidate"]
    other = next(name for name in ("ant", "bee", "cat") if name != best)
    with monkeypatch.context() as patch:
        patch.setattr(Run, "_best_of", lambda *_: other)
        patch.setattr(
            "souping.runs.run.best_by_category",
            lambda names, scores, categories: dict.fromkeys(categories, other),
        )
        repeated = runs.report(SOUP, "evaluator.seed=3")
        assert repeated["rows"] == first["rows"]
        assert repeated["verdict"] == first["verdict"]
        assert repeated["router"] == first["router"]
        last = len([*runs.place.glob("runs/*")]) - 1
        served = json.loads((runs.place / f"runs/{last}/router.json").read_text())["routes"]
        assert {name: route["model"] for name, route in served.items()} == first["router"]["routes"]
        assert any("was tested before" in warning for warning in repeated["warnings"])
        # A store whose looks have no such row yet takes today's.
        runs.rows("DELETE FROM choices")
        runs.rows("DELETE FROM written WHERE ledger = 'choices'")
        today = runs.report(SOUP)
    assert runs.report(SOUP)["rows"] == today["rows"] != first["rows"]


@pytest.mark.slow
def test_another_process_may_report_the_claim_first(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    known = CountedLooks.choices
    answers = iter([""])
    monkeypatch.setattr(
        CountedLooks, "choices", lambda self, claim: next(answers, known(self, claim))
    )
    (best,) = [row["name"] for row in runs.report(SOUP)["rows"] if row["kind"] == "best_candidate"]
    answers = iter([""])
    monkeypatch.setattr(
        Run, "_best_of", lambda *_: next(name for name in ("ant", "bee") if name != best)
    )
    with pytest.raises(AssertionError):
        runs.report(SOUP)
    assert "start this run again" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("where", "look_of_another"),
    [("show_report", 1), ("_measure", 2), ("_checked", 2)],
)
@pytest.mark.slow
def test_a_crash_counts_once_something_was_shown(
    fresh: Runs, monkeypatch: pytest.MonkeyPatch, where: str, look_of_another: int
) -> None:
    """Answers in the store can be read: the look is written before the first of them.

    So a crash in `show_report`, which writes it, costs nothing; a crash in what follows makes another soup the second.
    """

    def crash(self: Any, stage: Any, *rest: Any) -> Any:
        if where == "show_report" or stage.split == "test":
            if where == "_measure":
                measure(self, stage, *rest)
            raise KeyboardInterrupt
        return original(self, stage, *rest)

    place: Any = CountedLooks if where == "show_report" else Run
    measure = Run._measure
    original = getattr(place, where)
    with monkeypatch.context() as patch:
        patch.setattr(place, where, crash)
        with pytest.raises((KeyboardInterrupt, AssertionError, SystemExit)):
            fresh.report(SOUP)
    assert fresh.rows("SELECT COUNT(*) FROM answers")[0][0] > 0
    assert fresh.look("optimiser.weights=[0.2,0.2,0.6]") == look_of_another
    # Its own look is the first if it was shown before the other soup.
    assert fresh.look(SOUP) == (1 if look_of_another == 2 else 2)


@pytest.mark.slow
def test_another_answer_key_to_the_same_prompts_is_a_second_look(runs: Runs) -> None:
    assert (
        runs.look(SOUP, items=runs.rewrite("key.jsonl", lambda row: {**row, "scorer": "contains"}))
        == 2
    )


@pytest.mark.slow
def test_a_candidate_taken_out_or_added(runs: Runs) -> None:
    assert runs.look("optimiser.weights=[0.7,0.3]", pool=("ant", "cat")) == 2
    more = ("ant", "bee", "cat", "dog")
    assert runs.look("optimiser.weights=[0.5,0.2,0.3,0]", pool=more) == 3


@pytest.mark.slow
def test_items_or_a_category_left_out(runs: Runs) -> None:
    fewer = runs.rewrite(
        "fewer.jsonl", lambda row: None if row["id"].endswith(("7", "8", "9")) else row
    )
    assert runs.look(SOUP, items=fewer) == 2
    assert runs.look(SOUP, "benchmark.exclude=[blue]") == 3


@pytest.mark.slow
def test_a_single_model_is_a_claim(runs: Runs) -> None:
    assert runs.look("optimiser.weights=[1,0,0]") == 2
    assert runs.look("optimiser.weights=[0.2,0.7,0.1]") == 3


@pytest.mark.slow
def test_uniform_and_top_k_rows_of_other_pools(fresh: Runs) -> None:
    pools = {"ant": ("ant", "bee", "cat"), "bee": ("bee", "cat", "dog")}
    for number, names in enumerate(pools.values(), start=1):
        top = ("selector=topk", "selector.k=2", "optimiser.weights=[1,0]")
        assert fresh.look(*top, pool=names) == number
    ((shown,),) = fresh.rows("SELECT COUNT(*) FROM shown")
    assert shown >= 3
    # both reports showed soups of some of its items
    assert fresh.look("optimiser=uniform", pool=pools["bee"]) == 3


@pytest.mark.slow
def test_report_items_as_an_extra_benchmark(fresh: Runs) -> None:
    fresh.rewrite("other.jsonl", lambda row: {**row, "prompt": f"{row['prompt']} again"})
    assert (
        fresh.look(SOUP, f"extra_benchmarks=[{fresh.place / 'items.jsonl'}]", items="other.jsonl")
        == 1
    )
    # the extra benchmark was one look: its candidates, objective and soup are those of this report
    assert fresh.look("optimiser.weights=[0.1,0.1,0.8]") == 2
    assert fresh.look("optimiser.weights=[0.1,0.8,0.1]") == 3


@pytest.mark.slow
def test_guards_that_are_added_later_are_wider(fresh: Runs) -> None:
    def low(report: Mapping[str, Any]) -> float:
        (check,) = [c for c in report["analyses"]["guards"]["checks"] if c["name"] == "red"]
        return float(check["low"])

    def report(*guard: str) -> Mapping[str, Any]:
        words = ("min_gain=99", "optimiser=fixed", "guard_baseline=ant", SOUP)
        return fresh.report(*words, *guard)

    declared = report("guard={red: 99}")
    assert low(report("guard={red: 99}")) == low(declared)
    later = report("guard={red: 99, green: 99}")
    assert {one["verdict"]["look"] for one in (declared, later)} == {1}
    assert low(later) < low(declared)


@pytest.mark.slow
def test_soups_written_by_a_merge_as_candidates(fresh: Runs) -> None:
    pool = f"pool.candidates=[{fresh.family / 'ant'},{fresh.family / 'bee'}]"
    soups = [fresh.place / f"soup{number}" for number in range(3)]
    for soup, weights in zip(soups, ("0.2,0.8", "0.4,0.6", "0.7,0.3"), strict=True):
        words = ["+experiment=merge", pool, f"optimiser.weights=[{weights}]", f"out={soup}"]
        assert command_line(fresh.place, *words) == 0
    assert fresh.look("optimiser.weights=[1,0,0,0]", pool=("cat", *soups)) == 1
    assert fresh.look("optimiser.weights=[0.41,0.59]", pool=("ant", "bee")) == 2
    families = [json.loads(text) for (text,) in fresh.rows("SELECT family FROM counted_looks")]
    # three and the uniform one
    assert max(len(soups) for soups, _ in families) == 4


@pytest.mark.slow
def test_a_search_on_the_report_items_under_other_shares(fresh: Runs) -> None:
    fresh("optimiser.weights=[0.5,0.2,0.3]", "benchmark.splits={search:0.5}", "stop_after=search")
    spaced = fresh.place / "ant"
    shutil.copytree(fresh.family / "ant", spaced)
    config = spaced / "config.json"
    config.write_text(config.read_text() + " ")
    reports = [
        fresh.report(SOUP),
        fresh.report("optimiser.weights=[0.3,0.2,0.5]", pool=("cat", "bee", "ant")),
        fresh.report(SOUP, "merge.dtype=float32"),
        fresh.report("optimiser.weights=[0.5,0.5]", pool=(spaced, "dog")),
    ]
    (left,) = {report["splits"]["left_out"] for report in reports}
    assert left > 0
    assert all(
        report["rows"][-1]["objective"]["n"] == report["splits"]["test"] for report in reports
    )
    assert any("test items are left out" in warning for warning in reports[0]["warnings"])


def test_a_dry_run_leaves_no_item_of_its_own_splits_out(fresh: Runs) -> None:
    fresh("dry_run=3", SOUP)
    report = fresh.report(SOUP)
    assert report["splits"].get("left_out") is None
    assert report["verdict"]["look"] == 1


@pytest.mark.slow
def test_items_that_a_dry_run_showed_under_other_splits_are_left_out(fresh: Runs) -> None:
    fresh("dry_run=3", SOUP, "benchmark.splits={select:0.1,search:0.8,test:0.1}")
    # The select, the search and the test split of the dry run.
    assert fresh.rows("SELECT COUNT(*) FROM searches") == [(3,)]
    assert fresh.report(SOUP)["splits"]["left_out"] > 0


@pytest.mark.slow
def test_a_category_that_dry_runs_used_up_is_refused_with_their_name(
    fresh: Runs, capfd: pytest.CaptureFixture[str]
) -> None:
    fresh("dry_run=3", SOUP)
    ((candidates,), *_) = fresh.rows("SELECT ingredients FROM searches")
    items = Benchmark(path=str(fresh.place / "items.jsonl")).items()
    # As dry runs under many splits would.
    with Store(fresh.place / "outputs/store.sqlite") as store:
        CountedLooks(store).note_search(json.loads(candidates), items)
    with pytest.raises(AssertionError):
        fresh.report(SOUP)
    message = capfd.readouterr().err
    assert "category" in message
    assert "dry run" in message


@pytest.mark.slow
def test_a_repeated_run_opens_with_no_warning_of_another_look(
    runs: Runs, capfd: pytest.CaptureFixture[str]
) -> None:
    runs.look(SOUP)
    capfd.readouterr()
    assert runs.look(SOUP) == 1
    assert "look 2" not in capfd.readouterr().out
    runs.look("optimiser.weights=[0.2,0.2,0.6]")
    assert "look 2" in capfd.readouterr().out


def test_rows_that_were_deleted(runs: Runs) -> None:
    runs.rows("DELETE FROM counted_looks")
    runs.rows("DELETE FROM shown")
    report = runs.report(SOUP)
    assert report["verdict"]["look"] == 1 + 3
    assert any("were deleted" in warning for warning in report["warnings"])


def test_a_second_look_is_announced_with_its_price(
    runs: Runs, capfd: pytest.CaptureFixture[str]
) -> None:
    report = runs.report("optimiser.weights=[0.2,0.2,0.6]")
    told = " ".join(capfd.readouterr().out.split())
    # before the models load, and before the split opens
    assert told.count("multiplied by 6 (k (k + 1)") == 2
    assert told.index("multiplied by 6") < told.rindex("select: ")
    assert any(
        "look 2" in warning and "stop_after=search" in warning for warning in report["warnings"]
    )

"""Items of the test split and of extra benchmarks, by the looks that the store counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from souping.answers.claims import (
    Claim,
    Look,
    Measurement,
    evaluator_digest,
    pair_digest,
)
from souping.answers.counted_looks import CountedLooks
from souping.answers.evaluation import Evaluation
from souping.answers.report_choices import Choices
from souping.core.types import Item, ItemScores, Recipe, UserError, frozen
from souping.core.unit import Unit
from souping.report.content import SplitSizes
from souping.runs.evidence import ContenderScores, KnownScores
from souping.runs.settings import RunSettings
from souping.runs.steps import Stage


@frozen
class HeldOutItems:
    """The items that a run may report on, and what a look at them costs.

    `candidates` are {name: fingerprint}; `note` keeps a sentence for the reader of the report.
    """

    settings: RunSettings
    counted_looks: CountedLooks
    candidates: Mapping[str, str]
    note: Callable[[str], None]

    def report_claim(self, soup: Recipe, items: tuple[Item, ...]) -> Claim:
        """What the report will say of a soup."""
        return Claim(
            soup=soup,
            candidates=tuple(self.candidates.values()),
            evaluator=evaluator_digest(self.settings.evaluator),
            objective=self.settings.objective,
            items=self._unseen(soup, items),
        )

    def items_of(self, claim: Claim) -> tuple[Item, ...]:
        """The items of a report, without groups that earlier reports showed if the others alone show a smaller gain."""
        items = self.counted_looks.items_of(claim)
        if deleted := self.counted_looks.deleted():
            self.note(
                f"{deleted} rows of the looks in {self.settings.store_path} were deleted: each counts as a report"
            )
        if left_out := len(claim.items) - len(items):
            self.note(
                f"{left_out} of {len(claim.items)} test items are left out: earlier reports showed them, and the "
                "others show more without them"
            )
        return items

    def _unseen(self, soup: Recipe, items: tuple[Item, ...]) -> tuple[Item, ...]:
        """The items on which no run chose among this soup's ingredients.

        Raises:
            UserError: a category has none left.
        """
        # A dry run reports on items of the other splits.
        if self.settings.dry_run is not None:
            return items
        chosen_on = self.counted_looks.chosen_on(soup)
        unseen = tuple(item for item in items if item.prompt_digest not in chosen_on)
        if len(unseen) == len(items):
            return items
        categories = {item.category for item in items}
        if used_up := categories - {item.category for item in unseen}:
            raise UserError(
                f"category {min(used_up)}: earlier runs or dry runs with other splits chose among these ingredients on "
                "all of its test items, so nothing can be reported on them: add items that no run has seen"
            )
        self.note(
            f"{len(items) - len(unseen)} of {len(items)} test items are left out: earlier runs or dry runs with "
            "other splits chose among these ingredients on them"
        )
        return unseen

    def first_choices(self, claim: Claim, choices: Choices) -> Choices:
        """The choices of the first report of a claim; `choices` for a new one."""
        row = self.counted_looks.choices(claim)
        return choices.as_first_shown(row, self.candidates, claim.items) if row else choices

    def open(
        self,
        claim: Claim,
        stage: Stage,
        evaluation: Evaluation,
        measure: Callable[[Stage, Sequence[Measurement]], list[ItemScores]],
        guards: str = "",
        choices: Choices | None = None,
    ) -> tuple[Look, list[ItemScores]]:
        """Measure a claim: (its look, scores of the stage's models).

        The look is stored before the first answer, which can be read in the store, or wherever the items are answered.

        `measure` takes the stage and the measurements with which the claim was shown before, and returns the scores.
        `guards` are those of the run as the store keeps them (`goals.declared`), `choices` those of its report.

        Raises:
            UserError: another process reported the claim meanwhile, with other choices.
        """
        measurement = evaluation.measurement(stage.models, stage.items)
        row = "" if choices is None else choices.to_row(self.candidates, claim.items)
        look = self.counted_looks.show_report(
            claim, stage.items, stage.models, measurement, guards, row
        )
        if choices is not None and self.first_choices(claim, choices) != choices:
            raise UserError("another run reported this soup in the meantime: start this run again")
        scores = measure(stage, look.measurements)
        self._note_look(claim, stage, look, measurement)
        return look, scores

    def _note_look(self, claim: Claim, stage: Stage, look: Look, measurement: Measurement) -> None:
        """Note for the reader of the report that its items, or answers to them, were seen before."""
        items = stage.items
        # The first measurement is this one, unless the claim was shown before.
        if not measurement.repeats(look.measurements[0], claim.soup):
            self.note(
                f"{stage.name}: this soup was tested on these items before, with other settings or draws: those "
                "answers are reported again"
            )
        if look.first and (viewed := self.counted_looks.viewed(claim.soup.id, items)):
            self.note(
                f"answers to {viewed} of {len(items)} test items were looked at (souping show) in another recipe's "
                "report: later choices may depend on them"
            )
        if look.number > 1:
            self.note(f"{stage.name}: {look.sentence()}")

    def note_pairs(self, models: ContenderScores) -> None:
        """Store the level of every difference that a report shows: `compare` shows them again at the same look."""
        # Other objectives have no weights of items, and `compare` has no such average.
        if not models.objective.linear:
            return
        # `compare` reads scores in the evaluator's unit from logs.
        factor = self.settings.evaluator.unit.factor
        soup_scores = models.of(models.soup)
        weights = models.table.item_weights
        identities = [item.prompt_digest for item in soup_scores.items]
        levels = {}
        for other, pair in zip(models.others, models.pairs, strict=True):
            a = soup_scores.values / factor
            b = models.of(other).values / factor
            levels[pair_digest(identities, weights, a, b)] = pair.level
        self.counted_looks.note_pairs(levels)

    def family_scores(self, look: Look, items: Sequence[Item], unit: Unit) -> KnownScores:
        """Scores on items of the models that are tested together with the soup, in inner units."""
        questions = [item.answer_digest for item in items]
        scores = self.counted_looks.scores_of(look.known, questions)
        return KnownScores(scores=scores * unit.factor, missing=look.known.missing)


def split_sizes(splits: Mapping[str, int], claim: Claim, items: Sequence[Item]) -> SplitSizes:
    """Numbers of items in the splits, and of the test items that are not used: those that searches saw (`left_out`)
    and those that earlier reports showed (`shown`). None stands for 0."""
    return SplitSizes(
        select=splits["select"],
        search=splits["search"],
        test=len(items),
        left_out=splits["test"] - len(claim.items) or None,
        shown=len(claim.items) - len(items) or None,
    )

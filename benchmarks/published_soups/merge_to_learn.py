"""Merge to Learn: scores of soups of two Llama-2-7B models, along the weight of the specialist.

`results/consistent_mix/results.csv` of github.com/jacob-morrison/modular-adaptation (commit 109a0ae, Apache-2.0). A row
is a model or a merge, a column a benchmark. Scales differ: shares, percentages, and shares of harmful answers. Averages
are those of the authors' own plots: general skills are five benchmarks, science the mean of eleven scores.

Shape legend: S points of a path, B benchmarks, the general ones first.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from souping.core.types import FloatArray, UserError

Row = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A column of the file. Its cells times `factor` are points out of 100."""

    column: str
    factor: float = 100.0
    harm: bool = False  # a lower cell is better
    zero_is_missing: bool = False  # the file has 0 where the benchmark was not run

    def points(self, row: Row) -> float:
        """Points of a model, where more is better.

        Raises:
            UserError: the model has no score.
        """
        cell = row[self.column]
        if not cell or (self.zero_is_missing and float(cell) == 0):
            raise UserError(f"{row['model_key']} has no score in column {self.column}: {cell!r}")
        score = self.factor * float(cell)
        return 100 - score if self.harm else score


GENERAL = (
    Benchmark(column="mmlu_0shot"),
    Benchmark(column="gsm_cot"),
    Benchmark(column="bbh_cot"),
    Benchmark(column="truthfulqa"),
    Benchmark(column="alpaca_eval", factor=1),
)
SCIENCE = (
    "bioasq_f1",
    "biored_f1",
    "discomat_bleu",
    "evidence_inference_f1_overlap",
    "multicite_f1",
    "mup_rouge",
    "qasper_f1_answer",
    "qasper_f1_evidence",
    "scierc_f1",
    "scifact_f1_evidence_sent",
    "scifact_f1_label",
)
SCIENCE_TEST = tuple(Benchmark(column=f"{name}_TEST") for name in SCIENCE)
DOMAINS = {
    "science": tuple(Benchmark(column=name) for name in SCIENCE),
    "safety": (
        Benchmark(column="toxigen", harm=True),
        Benchmark(column="harmbench", factor=1, harm=True),
        Benchmark(column="unsafe_average", factor=1, harm=True),
    ),
    "coding": (
        Benchmark(column="codex_eval_plus_temp_0.8", zero_is_missing=True),
        Benchmark(column="mbpp_temp_0.8", zero_is_missing=True),
    ),
}
# Share of harmless requests that a model answers: the price of safety, which the authors plot on
# an axis of its own.
COMPLIANCE = Benchmark(column="safe_average", factor=1)

STEPS = 10
WEIGHTS = np.arange(STEPS + 1) / STEPS


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """Specialists of one domain, trained on nested amounts of its data, beside one general model."""

    name: str
    domain: str
    general: str
    amounts: tuple[int, ...]
    # What continued training of the general model is called; it is WiSE-FT's specialist.
    continued: str = "tulu_2_7b-tulu_none"

    def specialist(self, amount: int, continued: bool) -> str:
        trained_from = self.continued if continued else "llama_2_7b-tulu_none"
        return f"{trained_from}-{self.domain}_{amount}"


SHARES = (20, 40, 60, 80, 100)
LADDERS = (
    Ladder(name="science", domain="science", general="tulu_all", amounts=(100, 200, 500, 1000, 2500)),
    Ladder(name="safety", domain="safety", general="tulu_all", amounts=SHARES),
    Ladder(name="coding", domain="coding", general="tulu_all", amounts=SHARES),
    Ladder(
        name="coding, general model knows code",
        domain="coding",
        general="tulu_all_with_coding",
        amounts=SHARES,
        continued="tulu_2_7b_with_coding-tulu_none",
    ),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to merge, and the first word of its rows.

    `adds`: the general model plus a multiple of what training changed in the specialist, so a path
    ends at a soup. Otherwise it ends at the specialist.
    """

    name: str
    word: str
    adds: bool = False
    continued: bool = False

    def row(self, ladder: Ladder, amount: int, weight: float) -> str:
        """Key of the merge with this weight of the specialist."""
        rest = 1.0 if self.adds else round(1 - weight, 1)
        specialist = ladder.specialist(amount, self.continued)
        return f"{self.word}-llama_2_7b-{ladder.general}_{rest}-{specialist}_{weight}"


LINEAR = Method(name="linear", word="linear_weighted")
WISE_FT = Method(name="WiSE-FT", word="linear_weighted", continued=True)
TASK_ARITHMETIC = Method(name="task arithmetic", word="task_arithmetic", adds=True)
METHODS = (LINEAR, WISE_FT, TASK_ARITHMETIC)
# Sparse variants, each beside the plain method that it varies.
SPARSE = (
    (Method(name="TIES", word="ties"), LINEAR),
    (Method(name="DARE", word="dare_linear"), LINEAR),
    (Method(name="TIES", word="ties_task_arithmetic", adds=True), TASK_ARITHMETIC),
    (Method(name="DARE", word="dare_task_arithmetic", adds=True), TASK_ARITHMETIC),
)
SPARSE_PAIRS = ((LADDERS[0], 2500), (LADDERS[2], 100))


@dataclass(frozen=True, kw_only=True)
class MergePath:
    """Points along the weight 0, 0.1, .., 1 of the specialist, and the two parents."""

    ladder: Ladder
    amount: int
    method: Method
    points: FloatArray  # [S, B]
    parents: FloatArray  # [2, B], the general model first

    @property
    def soups(self) -> slice:
        """Points that are soups."""
        return slice(1, len(self.points) if self.method.adds else -1)


def read_models(path: Path) -> dict[str, Row]:
    """{model_key: row of the file}.

    Raises:
        UserError: the file lacks a column.
    """
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        domains = [benchmark for group in DOMAINS.values() for benchmark in group]
        for benchmark in (*GENERAL, *domains, *SCIENCE_TEST, COMPLIANCE):
            if benchmark.column not in (reader.fieldnames or ()):
                raise UserError(f"{path} has no column {benchmark.column}")
        return {row["model_key"]: row for row in reader}


Choice = Callable[[Ladder], tuple[Benchmark, ...]]


def objective_benchmarks(ladder: Ladder) -> tuple[Benchmark, ...]:
    """The general benchmarks and those of the domain."""
    return (*GENERAL, *DOMAINS[ladder.domain])


def with_compliance(ladder: Ladder) -> tuple[Benchmark, ...]:
    """The same, with harmless requests as one more benchmark of safety."""
    return (*objective_benchmarks(ladder), COMPLIANCE)


def with_test_columns(ladder: Ladder) -> tuple[Benchmark, ...]:
    """The general benchmarks, which have no test column, and science on its test items."""
    return (*GENERAL, *SCIENCE_TEST)


def merge_path(
    models: Mapping[str, Row],
    ladder: Ladder,
    amount: int,
    method: Method,
    choice: Choice = objective_benchmarks,
) -> MergePath:
    """One path, on the benchmarks of `choice`.

    The parents' scores are read from the rows of the models themselves: five rows of merges with
    all weight on one parent have the scores of another model.

    Raises:
        UserError: a row or a score is missing.
    """
    benchmarks = choice(ladder)

    def scores(key: str) -> list[float]:
        if key not in models:
            raise UserError(f"the results have no row {key}")
        return [benchmark.points(models[key]) for benchmark in benchmarks]

    general = scores(f"llama_2_7b-{ladder.general}")
    specialist = scores(ladder.specialist(amount, method.continued))
    inner = [scores(method.row(ladder, amount, float(weight))) for weight in WEIGHTS[1:-1]]
    last = scores(method.row(ladder, amount, 1.0)) if method.adds else specialist
    return MergePath(
        ladder=ladder,
        amount=amount,
        method=method,
        points=np.array([general, *inner, last]),
        parents=np.array([general, specialist]),
    )


def merge_paths(
    models: Mapping[str, Row], choice: Choice = objective_benchmarks
) -> Iterator[MergePath]:
    """Every pair of models by every method."""
    for ladder in LADDERS:
        for amount in ladder.amounts:
            for method in METHODS:
                yield merge_path(models, ladder, amount, method, choice)

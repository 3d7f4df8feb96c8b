"""How often a comparison of logs claims a difference that is not there, and how often its intervals hold the truth.

    python benchmarks/calibration.py [--repetitions 10000] [--worlds NAME ...] [--out FILE] [--peers]

Every world draws answers of models whose true difference is known. False claims are one-sided: 2.5 % nominal, of which
10,000 repetitions accept 300. A test draws 999 sign patterns, others in each repetition: one set for all would have one
critical value, which lies up to 6 % beside the right one in every repetition alike. A peer gets the scores of the items
alone, as its function takes no groups, tasks or runs; `--peers` needs evalstats, abeval and paired-eval.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from souping.comparison.pooled import pool
from souping.comparison.several import joint_tests
from souping.logs.match import MatchedMetric
from souping.statistics.comparison import contrast
from souping.statistics.corrections import Level
from souping.statistics.power import detectable
from souping.statistics.score_table import ScoreTable

Array = np.ndarray
Rng = np.random.Generator
BASE = 0.7
DRAWS = 999
compared = partial(contrast, draws=DRAWS)
PEERS_DRAWS = 399


def metric(
    task: str, scores: Mapping[str, Array], groups: Array | None = None, **more: Mapping[str, Array]
) -> MatchedMetric:
    """A task whose scores are {model: [I], [P, I] or [R, P, I]}."""
    full = {
        name: np.asarray(s, dtype=float).reshape((1,) * (3 - np.ndim(s)) + np.shape(s))
        for name, s in scores.items()
    }
    items = tuple(f"{task} {n}" for n in range(next(iter(full.values())).shape[2]))
    none = {name: np.full(s.shape, np.nan) for name, s in full.items()}
    return MatchedMetric(
        task=task, metric="acc", higher_is_better=True, is_mean=True, items=items,
        groups=("",) * len(items) if groups is None else tuple(f"g{g}" for g in groups), reported={},
        values={"score": full, "missing": more.get("missing", none), "cut": none, "tokens": none, "characters": none},
    )  # fmt: skip


def pooled(*tasks: MatchedMetric, weights: Mapping[str, float] | None = None) -> ScoreTable:
    names = {one.task: one for one in tasks}
    return pool(names, weights or {name: 1 / len(names) for name in names})


def right(
    rng: Rng,
    shape: tuple[int, ...],
    rate: float = BASE,
    shared: Array | float = 0.0,
    part: float = 0.5,
) -> Array:
    """Right-or-wrong answers with this rate exactly; `shared` normal numbers carry this part of the variance."""
    from scipy.special import ndtri

    ability = np.sqrt(part) * shared + np.sqrt(1 - part) * rng.standard_normal(shape)
    return np.asarray(ability < ndtri(rate), dtype=float)


def two(rng: Rng, items: int, rate: float = BASE, part: float = 0.5) -> dict[str, Array]:
    """Two equal models on items that are hard for both."""
    hard = rng.standard_normal(items)
    return {name: right(rng, (items,), rate, hard, part) for name in ("a", "b")}


def plain(rng: Rng) -> ScoreTable:
    return pooled(metric("t", two(rng, 300)))


def ties(rng: Rng) -> ScoreTable:
    return pooled(metric("t", two(rng, 300, part=0.99)))


def heavy_groups(rng: Rng) -> ScoreTable:
    """60 passages with 1 to 20 questions, on which a model is good or bad as a whole."""
    sizes = rng.permutation(np.repeat([1, 2, 5, 20], 15))
    groups = np.repeat(np.arange(60), sizes)
    hard = rng.standard_normal(60)[groups]
    mood = {name: np.sqrt(0.5) * (hard + rng.standard_normal(60)[groups]) for name in ("a", "b")}
    return pooled(
        metric("t", {n: right(rng, groups.shape, BASE, m, 0.7) for n, m in mood.items()}, groups)
    )


def groups_across_tasks(rng: Rng) -> ScoreTable:
    """Four tasks that ask about the same 60 documents."""
    hard = rng.standard_normal(60)
    mood = {name: np.sqrt(0.5) * (hard + rng.standard_normal(60)) for name in ("a", "b")}
    metrics = []
    for task in range(4):
        scores = {name: right(rng, (60,), BASE, means, 0.7) for name, means in mood.items()}
        metrics.append(metric(f"t{task}", scores, np.arange(60)))
    return pooled(*metrics)


def bfcl_logs(rng: Rng, grouped: bool = True) -> ScoreTable:
    """Three variants of 100 scenarios, and two single-turn tasks that share function documents."""
    tasks = []
    for names, units, part in (
        (("base", "miss_func", "miss_param"), np.arange(100), 0.4),
        (("simple", "multiple"), np.repeat(np.arange(60), rng.integers(1, 5, 60)), 0.3),
    ):
        hard = rng.standard_normal(units.max() + 1)
        mood = {
            model: np.sqrt(0.5) * (hard + rng.standard_normal(len(hard))) for model in ("a", "b")
        }
        for name in names:
            scores = {m: right(rng, units.shape, BASE, mood[m][units], part) for m in mood}
            groups = np.array([f"{names[0]} {unit}" for unit in units])
            tasks.append(metric(name, scores, groups if grouped else None))
    return pooled(*tasks)


def bfcl_logs_ungrouped(rng: Rng) -> ScoreTable:
    return bfcl_logs(rng, grouped=False)


def thirty_items(rng: Rng) -> ScoreTable:
    return pooled(metric("t", two(rng, 30)))


def rare_successes(rng: Rng) -> ScoreTable:
    return pooled(metric("t", two(rng, 500, rate=0.02)))


def fractions(rng: Rng) -> ScoreTable:
    hard = rng.beta(2, 2, 200)
    return pooled(metric("t", {name: rng.beta(4 * hard, 4 * (1 - hard)) for name in ("a", "b")}))


def replicates(rng: Rng) -> ScoreTable:
    """Five sampled answers an item; what a model makes of an item is the same in all of them."""
    hard = rng.standard_normal(100)
    mood = {name: (hard + rng.standard_normal(100)) / np.sqrt(2) for name in ("a", "b")}
    return pooled(
        metric("t", {name: right(rng, (5, 100), BASE, m, 0.7) for name, m in mood.items()})
    )


def many_tasks(rng: Rng) -> ScoreTable:
    """A group of 57 tasks of unequal size that counts as much as one other task."""
    sizes = {f"t{n}": 5 + n // 2 for n in range(57)}
    tasks = [metric(name, two(rng, size)) for name, size in sizes.items()]
    weights = {name: 0.5 * size / sum(sizes.values()) for name, size in sizes.items()}
    return pooled(*tasks, metric("other", two(rng, 125)), weights={**weights, "other": 0.5})


def training_runs(rng: Rng) -> ScoreTable:
    """Three training runs a side, whose rates differ by about 2 points."""
    from scipy.special import ndtri

    hard = rng.standard_normal(400)
    scores = {}
    for name in ("a", "b"):
        own = np.sqrt(0.5) * (hard + rng.standard_normal((3, 1, 400)))
        scores[name] = own + 0.06 * rng.standard_normal((3, 1, 1)) < ndtri(BASE)
    return pooled(metric("t", scores))


def runs_of_models(
    rng: Rng, runs: Sequence[int], shift: float = 0.1, ahead: float = 0.0
) -> ScoreTable:
    """Runs that differ by a shift of about 3.5 points and by the noise of single answers.

    The rate of the first model is higher by `ahead`.
    """
    from scipy.special import ndtri

    hard = rng.standard_normal(300)
    scores = {}
    for name, number in zip("abcde", runs, strict=False):
        mood = np.sqrt(0.5) * (hard + rng.standard_normal(300))
        answers = np.sqrt(0.9) * mood + np.sqrt(0.1) * rng.standard_normal((number, 1, 300))
        level = answers + shift * rng.standard_normal((number, 1, 1))
        # The variance of a level is 1 + shift^2.
        rate = BASE + ahead * (name == "a")
        scores[name] = level < ndtri(rate) * (np.sqrt(1 + shift**2) if ahead else 1.0)
    return pooled(metric("t", scores))


def two_runs(rng: Rng) -> ScoreTable:
    return runs_of_models(rng, (2, 2))


def three_runs(rng: Rng) -> ScoreTable:
    return runs_of_models(rng, (3, 3))


def two_runs_against_one(rng: Rng) -> ScoreTable:
    return runs_of_models(rng, (2, 1))


def missing_answers(rng: Rng) -> ScoreTable:
    """Hard items are often left unanswered by b, which its harness counts as wrong."""
    hard = rng.standard_normal(400)
    scores = {name: right(rng, (400,), BASE, hard) for name in ("a", "b")}
    gone = rng.random(400) < 0.2 * (hard > 0)
    counted = {**scores, "b": np.where(gone, 0.0, scores["b"])}
    missing = {"b": gone[None, None], "a": np.zeros((1, 1, 400), dtype=bool)}
    return pooled(metric("t", counted, missing=missing))


def five_models(rng: Rng, ahead: float = 0.0) -> ScoreTable:
    hard = rng.standard_normal(300)
    return pooled(
        metric("t", {n: right(rng, (300,), BASE + ahead * (n == "a"), hard) for n in "abcde"})
    )


PAIRS: Mapping[str, Callable[[Rng], ScoreTable]] = {
    world.__name__.replace("_", " "): world
    for world in (plain, ties, heavy_groups, groups_across_tasks, bfcl_logs, bfcl_logs_ungrouped,
                  thirty_items, rare_successes, fractions,
                  missing_answers, replicates, many_tasks, training_runs,
                  two_runs, three_runs, two_runs_against_one)
}  # fmt: skip


def pair_row(
    name: str, world: Callable[[Rng], ScoreTable], repetitions: int, peers: Peers
) -> list[str]:
    """False claims in both directions, coverage, and the width beside that of a standard paired interval."""
    better = worse = covered = 0
    widths = []
    standard = []
    false = dict.fromkeys(peers, 0)
    for number in range(repetitions):
        found = world(np.random.default_rng([sum(map(ord, name)), number]))
        shown = compared(found, "a", "b", seed=number)
        better = better + (shown.low > 0)
        worse = worse + (shown.high < 0)
        covered += shown.low <= 0 <= shown.high
        widths.append(shown.high - shown.low)
        a = found.mean("a")
        b = found.mean("b")
        standard.append(2 * 1.96 * np.std(a - b, ddof=1) / np.sqrt(len(a)))
        for peer, shows in peers.items():
            false[peer] += shows(a, b)
    share = [f"{repetitions:,}"]
    share += [f"{100 * n / repetitions:.2f} %" for n in (better, worse, covered)]
    rivals = [f"{100 * n / repetitions:.2f} %" for n in false.values()]
    return [name, *share, f"{100 * np.mean(widths):.1f}", f"{100 * np.mean(standard):.1f}", *rivals]


def families(repetitions: int) -> list[str]:
    """Five models: false claims of any, and how often the best set misses the best; of equal models each is a best."""
    lines = []
    for ahead in (0.0, 0.02):
        world = partial(five_models, ahead=ahead)
        label = f"five models, the first {100 * ahead:.0f} points ahead"
        seed = [5, int(1000 * ahead)]
        lines.append(family_line(label, world, seed, repetitions, first_is_best=ahead > 0))
    return lines


def families_of_runs(repetitions: int) -> list[str]:
    """The same of models with two or three runs each, or of which only some have two."""
    lines = []
    for runs in ((2,) * 5, (3,) * 5, (2, 1, 2, 1, 1)):
        for ahead in (0.0, 0.1):
            world = partial(runs_of_models, runs=runs, ahead=ahead)
            numbers = ", ".join(map(str, runs))
            label = f"five models of {numbers} runs, the first {100 * ahead:.0f} points ahead"
            seed = [13, *runs, int(1000 * ahead)]
            lines.append(family_line(label, world, seed, repetitions, first_is_best=ahead > 0))
    return lines


def family_line(
    label: str,
    world: Callable[[Rng], ScoreTable],
    seed: Sequence[int],
    repetitions: int,
    *,
    first_is_best: bool,
) -> str:
    """A line on five models, of which the first is the best one or all are equal.

    `missed` counts models: equal ones are all best, so the one best model of a world counts as five.
    """
    names = tuple("abcde")
    better = worse = missed = size = 0
    for number in range(repetitions):
        scores = world(np.random.default_rng([*seed, number]))
        tests, best = joint_tests(scores, names, Level())
        size += len(best)
        if first_is_best:
            missed += 5 * ("a" not in best)
            continue
        missed += 5 - len(best)
        comparisons = []
        for name, model_tests in zip(names[1:], tests, strict=True):
            comparisons.append(compared(scores, name, "a", Level(tests=model_tests), seed=number))
        better += any(comparison.low > 0 for comparison in comparisons)
        worse += any(comparison.high < 0 for comparison in comparisons)
    claims = ""
    if not first_is_best:
        claims = (
            f"{100 * better / repetitions:.2f} % false claims of any `better`, "
            f"{100 * worse / repetitions:.2f} % of any `worse`; "
        )
    return (
        f"- {label}: {claims}the best set misses a best model in "
        f"{100 * missed / (5 * repetitions):.2f} % and holds {size / repetitions:.1f} models"
    )


def power(repetitions: int) -> list[str]:
    """How often a true difference is shown that should have 80 % power by the width of another draw's interval."""

    lines = []
    for items in (200, 500, 2000):
        first = pooled(metric("t", two(np.random.default_rng(0), items)))
        widths = [detectable(contrast(first, "a", "b"))]
        for number in range(20):
            again = pooled(metric("t", two(np.random.default_rng([8, items, number]), items)))
            widths.append(detectable(contrast(again, "a", "b", seed=number)))
        gain = float(np.mean(widths))
        shown = 0
        for number in range(repetitions):
            rng = np.random.default_rng([9, items, number])
            hard = rng.standard_normal(items)
            scores = {
                "a": right(rng, (items,), BASE - 0.5 * gain + gain, hard),
                "b": right(rng, (items,), BASE - 0.5 * gain, hard),
            }
            shown += contrast(pooled(metric("t", scores)), "a", "b", seed=number).low > 0
        lines.append(
            f"- {items} items: a difference of {100 * gain:.1f} points is shown in {100 * shown / repetitions:.1f} %"
        )
    return lines


def graded_runs(rng: Rng, runs: int, ratio: float, gain: float) -> ScoreTable:
    """Training runs whose means vary with variance 1 and `ratio` on the two sides; items differ little.

    Scores are near 10, where no limit of 0 or 1 cuts an interval.
    """
    scores = {}
    for name, sd, mean in (("a", 1.0, gain), ("b", math.sqrt(ratio), 0.0)):
        shift = 10 + mean + sd * rng.standard_normal((runs, 1, 1))
        scores[name] = shift + 0.5 * rng.standard_normal((runs, 1, 100))
    metric_of_runs = metric("t", scores)
    return pooled(replace(metric_of_runs, is_mean=False))


def power_of_runs(repetitions: int) -> list[str]:
    """How often one comparison shows the difference that an earlier one said has 80 % power."""
    lines = []
    for runs in (2, 3, 5):
        for ratio in (1.0, 3.0):
            shown = 0
            for number in range(repetitions):
                rng = np.random.default_rng([11, runs, int(ratio), number])
                gain = detectable(contrast(graded_runs(rng, runs, ratio, 0.0), "a", "b"))
                shown += contrast(graded_runs(rng, runs, ratio, gain), "a", "b").low > 0
            spread = "equal variances" if ratio == 1 else f"variances that differ {ratio:.0f} times"
            share = f"{100 * shown / repetitions:.1f} %"
            lines.append(f"- {runs} runs a side, {spread}: shown in {share}")
    return lines


Peers = Mapping[str, Callable[[Array, Array], bool]]


def installed_peers() -> Peers:
    """Whether each tool calls a better than b, by its function for two paired lists of scores."""
    import evalstats
    import pandas
    from abeval.compare import paired_compare
    from paired_eval import claim_eval

    def of_evalstats(a: Array, b: Array) -> bool:
        n = len(a)
        table = pandas.DataFrame(
            {"model": ["a"] * n + ["b"] * n, "item": [*range(n)] * 2, "score": [*a, *b]}
        )
        with contextlib.redirect_stdout(io.StringIO()):
            found = evalstats.compare(evalstats.load_from(table), factors="model").pairwise.results[
                "a", "b"
            ]
        return bool(found.point_diff > 0 and found.p_value < 0.05)

    def of_abeval(a: Array, b: Array) -> bool:
        found = paired_compare(b.tolist(), a.tolist(), reps=PEERS_DRAWS)
        return bool(found.diff > 0 and found.p_permutation < 0.05)

    def of_paired_eval(a: Array, b: Array) -> bool:
        found = claim_eval.paired_compare(a.tolist(), b.tolist(), n_resamples=PEERS_DRAWS)
        return bool(found["mean_diff"] > 0 and found["p_value"] < 0.05)

    return {"evalstats": of_evalstats, "abeval": of_abeval, "paired-eval": of_paired_eval}


FURTHER = {
    "families": families,
    "families of runs": families_of_runs,
    "power": power,
    "power of runs": power_of_runs,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=10_000)
    parser.add_argument(
        "--worlds",
        nargs="*",
        default=[*PAIRS, *FURTHER],
        choices=[*PAIRS, *FURTHER],
    )
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peers", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    peers = installed_peers() if options.peers else {}
    header = [
        "world",
        "repetitions",
        "false better",
        "false worse",
        "coverage",
        "width",
        "standard width",
        *peers,
    ]
    lines = [
        f"{options.repetitions:,} repetitions of the lines below the table.",
        "",
        f"| {' | '.join(header)} |",
        f"|---{'|---:' * (len(header) - 1)}|",
    ]
    for name in options.worlds:
        start = time.process_time()
        if name in PAIRS:
            lines.append(
                f"| {' | '.join(pair_row(name, PAIRS[name], options.repetitions, peers))} |"
            )
        else:
            lines += ["", *FURTHER[name](options.repetitions)]
        print(lines[-1], f"{time.process_time() - start:.0f} s", flush=True)
    text = "\n".join(lines) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()

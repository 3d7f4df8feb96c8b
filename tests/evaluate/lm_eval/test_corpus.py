"""Corpus metrics: values whose mean is sacrebleu's score, and intervals that agree with its bootstrap."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import pytest

from souping.core.types import UserError
from souping.evaluate.lm_eval import HarnessEvaluator
from souping.evaluate.lm_eval.metrics import measure, metric_score, pseudo_values
from souping.statistics.intervals import rate
from souping.statistics.score_table import ModelScores, one_category
from tests.support import lm_eval_tasks
from tests.support.choices import slow_unless
from tests.support.flips import compare
from tests.support.models import own_items

sacrebleu = pytest.importorskip("sacrebleu")
pytest.importorskip("lm_eval")

TEXT = "a the cook stirs pours warm cold soup broth into over pot bowl with salt and some leek rice slowly"
WORDS = TEXT.split()


def translations(count: int, noise: float, seed: int) -> tuple[list[str], list[str]]:
    """References, and texts whose words are lost, doubled or changed with probability `noise`."""
    dice = random.Random(5)
    errors = random.Random(seed)

    def changed(word: str) -> list[str]:
        if errors.random() >= noise:
            return [word]
        return errors.choice([[], [], [word, word], [errors.choice(WORDS)], [errors.choice(WORDS)]])

    references = [" ".join(dice.choices(WORDS, k=dice.randint(6, 14))) + "." for _ in range(count)]
    texts = []
    for reference in references:
        words = [changed(word) for word in reference.split()]
        texts.append(" ".join(chain(*words)))
    return references, texts


def statistics(
    kind: str, references: Sequence[str], texts: Sequence[str]
) -> list[tuple[float, ...]]:
    return [measure(kind, [r, t], "item x")[1] for r, t in zip(references, texts, strict=True)]


def official(kind: str, references: list[str], texts: list[str]) -> float:
    """sacrebleu's own corpus score, as a fraction, higher is better."""
    if kind == "bleu":
        return float(sacrebleu.corpus_bleu(texts, [references]).score) / 100
    if kind == "ter":
        return 1 - float(sacrebleu.corpus_ter(texts, [references]).score) / 100
    return (
        float(
            sacrebleu.corpus_chrf(
                texts, [references], word_order=2 if kind == "chrf++" else 0
            ).score
        )
        / 100
    )


@pytest.mark.parametrize("kind", ["bleu", "chrf", "chrf++", "ter"])
class TestSacrebleu:
    @pytest.mark.parametrize(
        ("count", "noise"), [(1, 0.3), (40, 0.0), (40, 0.3), (40, 0.95), (7, 1.0)]
    )
    def test_the_mean_is_the_corpus_score(self, kind: str, count: int, noise: float) -> None:
        references, texts = translations(count, noise, seed=count)
        values = pseudo_values(kind, statistics(kind, references, texts))
        assert values.mean() == pytest.approx(official(kind, references, texts), abs=1e-12)

    def test_values_are_the_limit_of_the_jackknife(self, kind: str) -> None:
        """Leave-one-out pseudo-values n f(S) - (n - 1) f(S - s_i) come near them as n grows."""
        references, texts = translations(200, 0.4, seed=1)
        table = np.array(statistics(kind, references, texts))
        total = table.sum(axis=0)
        n = len(table)
        left_out = [
            n * metric_score(kind, total) - (n - 1) * metric_score(kind, total - row)
            for row in table
        ]
        values = pseudo_values(kind, table.tolist())
        assert np.corrcoef(values, left_out)[0, 1] > 0.999
        assert np.abs(values - left_out).max() < 0.05 * np.ptp(values)


@pytest.mark.parametrize("kind", ["bleu", "chrf"])
class TestAgainstSacrebleusBootstrap:
    """Its bootstrap (Koehn 2004) resamples sentences and scores each draw's corpus anew."""

    def test_the_interval_of_one_system(self, kind: str) -> None:
        references, texts = translations(300, 0.35, seed=3)
        metric = {"bleu": sacrebleu.metrics.BLEU, "chrf": sacrebleu.metrics.CHRF}[kind]()
        theirs = metric.corpus_score(texts, [references], n_bootstrap=1000)
        values = pseudo_values(kind, statistics(kind, references, texts))
        ours = rate(ModelScores(items=one_category(np.arange(300)), values=values)).estimate
        assert (ours.high - ours.low) / 2 == pytest.approx(theirs._ci / 100, rel=0.12)

    @pytest.mark.parametrize(("noise", "differs"), [(0.30, True), (0.35, False)])
    def test_the_sign_flip_agrees_with_sacrebleus_paired_test(
        self, kind: str, noise: float, differs: bool
    ) -> None:
        from sacrebleu.significance import PairedTest

        references, base = translations(300, 0.35, seed=3)
        _, texts = translations(300, noise, seed=4)
        metric = {"bleu": sacrebleu.metrics.BLEU, "chrf": sacrebleu.metrics.CHRF}[kind](
            references=[references]
        )
        name = {"bleu": "BLEU", "chrf": "chrF2"}[kind]
        _, found = PairedTest(
            [("base", base), ("soup", texts)], {name: metric}, None, "bs", n_samples=1000
        )()
        result = found[name][1]
        assert isinstance(result, sacrebleu.significance.Result)
        theirs = result.p_value
        one = np.zeros(300, dtype=np.int64)
        soup_values = pseudo_values(kind, statistics(kind, references, texts))
        base_values = pseudo_values(kind, statistics(kind, references, base))
        ours = compare("soup", "base", soup_values, base_values, one, np.arange(300), np.ones(1))
        expected = official(kind, references, texts) - official(kind, references, base)
        assert ours.difference == pytest.approx(expected, abs=1e-12)
        assert theirs is not None
        assert (ours.p_alone < 0.05) == (theirs < 0.05) == differs
        assert (ours.low > 0) == differs


def test_a_perplexity_is_turned_round() -> None:
    """1 / P is the mean probability of a word, and 1 / 2^b is the same per byte."""
    from lm_eval.api.metrics import bits_per_byte, weighted_perplexity

    raw = [(-9.5, 4), (-30.25, 11), (-2.5, 2)]
    table = [measure("weighted_perplexity", value, "x")[1] for value in raw]
    assert pseudo_values("weighted_perplexity", table).mean() == pytest.approx(
        1 / weighted_perplexity(raw)
    )
    assert pseudo_values("bits_per_byte", table).mean() == pytest.approx(2 ** -bits_per_byte(raw))
    assert measure("perplexity", -2.0, "x") == (math.exp(-2), (-2.0, 1.0))


@pytest.mark.parametrize("kind", ["f1", "matthews_corrcoef"])
@pytest.mark.parametrize("wrong", [0.0, 0.3, 1.0])
def test_f1_and_matthews_correlation(kind: str, wrong: float) -> None:
    from lm_eval.api import metrics

    dice = random.Random(1)
    golds = [int(dice.random() < 0.3) for _ in range(80)]
    raw = [(gold, 1 - gold if dice.random() < wrong else gold) for gold in golds]
    table = np.array([measure(kind, value, "x")[1] for value in raw])
    values = pseudo_values(kind, table.tolist())
    theirs = {"f1": metrics.f1_score, "matthews_corrcoef": metrics.matthews_corrcoef}[kind](raw)
    assert values.mean() == pytest.approx(theirs, abs=1e-12)
    if wrong == 0.3:
        total = table.sum(axis=0)
        n = len(table)
        left_out = [
            n * metric_score(kind, total) - (n - 1) * metric_score(kind, total - row)
            for row in table
        ]
        assert np.corrcoef(values, left_out)[0, 1] > 0.99
    with pytest.raises(UserError, match="needs two labels, 0 or 1, not"):
        measure(kind, (2, 1), "item t/1")


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory: pytest.TempPathFactory) -> HarnessEvaluator:
    folder = lm_eval_tasks.make(tmp_path_factory.mktemp("tasks"))
    return HarnessEvaluator(
        tasks=["translate", "write"], include_path=str(folder), threads=1, device="cpu"
    )


@pytest.mark.parametrize("metric", slow_unless(["bleu"], ["bleu", "chrf", "ter"]))
def test_a_category_scores_what_the_harness_says(
    evaluator: HarnessEvaluator, served: Any, metric: str
) -> None:
    values, results = both(replace(evaluator, metric={"translate": metric}), served)
    theirs = results["translate"][f"{metric},none"] / 100
    assert values[:12].mean() == pytest.approx(1 - theirs if metric == "ter" else theirs, abs=1e-12)
    assert values[12:].mean() == results["write"]["exact_match,none"]


def both(own: HarnessEvaluator, served: Any) -> tuple[Any, Any]:
    """(our values, the harness's results) of one model."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    items = own_items(own)
    values = own.scoring.item_scores(items, [[record] for record in own.evaluate(served, items)])
    lm = HFLM(pretrained=served.module, tokenizer=served.tokenizer, batch_size=16)
    manager = TaskManager(include_path=own.include_path, include_defaults=False)
    tasks: list[Any] = list(own.tasks)
    found: Any = simple_evaluate(model=lm, tasks=tasks, task_manager=manager, bootstrap_iters=0)
    return values, found["results"]


@pytest.mark.parametrize(
    ("task", "metric"),
    [("roll", None), ("last", None), pytest.param("roll", "bits_per_byte", marks=pytest.mark.slow)],
)
def test_likelihoods_of_whole_texts(
    evaluator: HarnessEvaluator, served: Any, task: str, metric: str | None
) -> None:
    own = replace(evaluator, tasks=[task], metric=metric)
    values, results = both(own, served)
    used = own.loaded[task].metric.name
    assert used == (metric or {"roll": "word_perplexity", "last": "perplexity"}[task])
    theirs = results[task][f"{used},none"]
    expected = 2**-theirs if used == "bits_per_byte" else 1 / theirs
    assert values.mean() == pytest.approx(expected, rel=1e-5)

"""Networks, training, merges and scores of the families, on models that take no time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.soup_families import training
from benchmarks.soup_families.design import LARGER, SMALL, Size, exploratory
from benchmarks.soup_families.items import Data, Items, answer_mask, data_of, encode
from benchmarks.soup_families.matrices import load, path_of, save
from benchmarks.soup_families.merging import (
    ALL,
    OTHERS,
    SUBSETS,
    linear,
    others,
    spread_over,
    ties,
    uniform_weights,
)
from benchmarks.soup_families.network import Network
from benchmarks.soup_families.scoring import right
from tests.support.soup_families import matrix

TINY = Network(size=Size(width=8, layers=2, heads=2, base_rate=1e-2, tune_rate=1e-2))
EXAMPLES = [(list("abc"), list("cba")), (list("ab"), list("ba")), (list("abcde"), list("edcba"))]


def models(count: int, network: Network = TINY) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    return torch.cat([network.start(random) for _ in range(count)])


def test_many_models_at_once_are_each_as_alone() -> None:
    rows = models(3)
    tokens = torch.from_numpy(encode("reverse", EXAMPLES).tokens)
    together = TINY.logits(rows, tokens)
    for number in range(3):
        alone = TINY.logits(rows[number : number + 1], tokens)[0]
        torch.testing.assert_close(together[number], alone)
    own = tokens.expand(3, -1, -1)
    torch.testing.assert_close(TINY.logits(rows, own), together)


def test_the_last_tokens_alone_have_the_same_logits() -> None:
    rows = models(2)
    tokens = torch.from_numpy(encode("reverse", EXAMPLES).tokens)
    torch.testing.assert_close(
        TINY.logits(rows, tokens, first=3), TINY.logits(rows, tokens)[:, :, 3:]
    )


def test_no_token_sees_a_later_one() -> None:
    rows = models(1)
    tokens = torch.from_numpy(encode("reverse", EXAMPLES).tokens)
    changed = tokens.clone()
    changed[:, 6] = 7
    before = TINY.logits(rows, tokens)[:, :, :6]
    torch.testing.assert_close(TINY.logits(rows, changed)[:, :, :6], before)


def test_sizes_are_a_tenth_and_one_million() -> None:
    assert Network(size=SMALL).parameters == 102_144
    assert 0.9e6 < Network(size=LARGER).parameters < 1.1e6


def test_scores_are_greedy_decoding() -> None:
    rows = models(2) * 3
    items = encode("reverse", EXAMPLES)
    expected = [[decoded(row, items, place) for place in range(3)] for row in rows]
    # answers of the first model, so that something is right
    tokens = items.tokens.copy()
    for place, (start, end) in enumerate(zip(items.start, items.end, strict=True)):
        tokens[place, start:end] = expected[0][place][: end - start]
    planted = Items(tokens=tokens, start=items.start, end=items.end)
    answers = right(TINY, rows, planted)
    assert answers[0].all()
    for place in range(3):
        length = items.end[place] - items.start[place]
        same = expected[1][place][:length] == expected[0][place][:length]
        assert answers[1, place] == same


def decoded(row: torch.Tensor, items: Items, place: int) -> list[int]:
    """What a model writes, token by token."""
    tokens: list[int] = items.tokens[place, : items.start[place]].tolist()
    for _ in range(items.end[place] - items.start[place]):
        logits = TINY.logits(row[None].bfloat16(), torch.tensor([tokens]))
        tokens.append(int(logits[0, 0, -1].argmax()))
    return tokens[items.start[place] :]


@pytest.fixture(scope="module")
def data() -> Data:
    return data_of(exploratory()[11])


def trained_rows(data: Data, steps: Sequence[int], rows: torch.Tensor) -> torch.Tensor:
    schedule = training.Schedule(rate=1e-2, warm=5, last=0.1)
    mixtures = np.ones((len(rows), 5))
    return training.train(TINY, rows, data, mixtures, steps, schedule, seed=0)


def test_training_lowers_the_loss_and_stops_each_model_at_its_step(data: Data) -> None:
    start = models(1).expand(2, -1)
    rows = trained_rows(data, [20, 0], start)
    assert torch.equal(rows[1], start[1])
    tokens = torch.from_numpy(data.items.tokens[::40])
    mask = answer_mask(data.items)[::40, 1:]
    losses = []
    for row in rows:
        logits = TINY.logits(row[None], tokens[:, :-1])[0]
        losses.append(torch.nn.functional.cross_entropy(logits[mask], tokens[:, 1:][mask]))
    assert losses[0] < losses[1] - 0.3


def test_the_longest_training_comes_first(data: Data) -> None:
    with pytest.raises(ValueError, match="longest"):
        trained_rows(data, [1, 2], models(2))


def test_adamw_is_that_of_torch() -> None:
    ours = models(2)
    theirs = torch.nn.Parameter(ours.clone())
    optimiser = torch.optim.AdamW(
        [theirs], lr=0.01, betas=training.BETAS, weight_decay=training.WEIGHT_DECAY
    )
    moments = (torch.zeros_like(ours), torch.zeros_like(ours))
    random = torch.Generator().manual_seed(1)
    for step in range(5):
        gradient = torch.randn(ours.shape, generator=random)
        theirs.grad = gradient.clone()
        optimiser.step()
        training._adamw(ours, gradient, moments, torch.tensor([0.01, 0.01]), step)
    torch.testing.assert_close(ours, theirs.detach())


# ------------------------------------------------------------ merges


def test_uniform_soups_are_all_subsets() -> None:
    weights = uniform_weights()
    assert weights.shape == (255, 8)
    np.testing.assert_allclose(weights.sum(axis=1), 1)
    assert len(np.unique(weights > 0, axis=0)) == 255
    assert np.array_equal(weights[:8], np.eye(8))
    assert SUBSETS[-1] == ALL


def test_a_merge_adds_weighted_changes() -> None:
    base = torch.ones(4)
    changes = torch.eye(8)[:, :4]
    weights = spread_over((1, 3), np.array([[0.25, 0.75]]))
    assert linear(base, changes, weights).tolist() == [[1, 1.25, 1, 1.75]]


def test_ties_trims_elects_and_averages() -> None:
    changes = torch.tensor([[4.0, -3, 1, 2], [2.0, 5, 1, -4]])
    # of each, half is kept: 4 -3 . . and . 5 . -4; the second parameter's sign is +
    assert ties(changes, 0.5).tolist() == [4, 5, 0, -4]


def test_others_are_as_many_as_the_matrix_has_rows_for() -> None:
    rows = models(9)
    blocks = TINY.blocks()
    assert blocks.unique().tolist() == [0, 1, 2, 3, 4]
    found = list(others(rows[0], rows[1:] - rows[0], blocks, (0, 2), seed=1))
    assert len(found) == OTHERS
    torch.testing.assert_close(found[1], rows[0] + 1.25 * (rows[[1, 3]].mean(dim=0) - rows[0]))


# ------------------------------------------------------------ matrices


def test_a_matrix_is_read_as_it_was_written(tmp_path: Path) -> None:
    made = matrix(seed=2**63 + 5)
    path = save(made, tmp_path)
    assert path == path_of(made.facts.name, tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    again = load(path)
    assert again.facts == made.facts
    assert np.array_equal(again.answers, made.answers)
    for subset, weights in made.points.items():
        np.testing.assert_allclose(again.points[subset], weights, atol=1e-7)
        assert np.array_equal(again.searched(subset), made.searched(subset))
    # a uniform soup is the same as the search's anchor
    place = SUBSETS.index(made.facts.experts)
    assert np.array_equal(again.searched(made.facts.experts)[0], again.uniform[place])

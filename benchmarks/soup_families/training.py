"""Training of a base and of its eight tunes, all tunes at once: AdamW on the rows of one matrix [M, P]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.soup_families.design import TUNES, Family
from benchmarks.soup_families.items import PAD, Data, answer_mask, joined
from benchmarks.soup_families.network import Network
from souping.core.types import FloatArray

BATCH = 64
WEIGHT_DECAY = 0.01
BETAS = (0.9, 0.98)
CLIP = 1.0
BASE_STEPS = {5: 450, 10: 600}
"""By the number of categories."""
# Other skills than a specialist's own come this often, by comparison.
REST = 0.04


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Linear warm-up to a rate, then linear decay to a share of it."""

    rate: float
    warm: int
    last: float

    def at(self, step: int, steps: int) -> float:
        decay = 1 - (1 - self.last) * step / steps
        return self.rate * min(1.0, (step + 1) / self.warm) * decay


def train(
    network: Network,
    rows: Tensor,
    data: Data,
    mixtures: FloatArray,
    steps: Sequence[int],
    schedule: Schedule,
    seed: int,
) -> Tensor:
    """Rows [M, P] after `steps` [M] of training on examples of the categories in proportion to `mixtures` [M, C].

    The models need an order: the longest training first.
    """
    if list(steps) != sorted(steps, reverse=True):
        raise ValueError("the longest training comes first")
    pool = joined(data.pools)
    tokens = torch.from_numpy(pool.tokens)
    mask = answer_mask(pool)
    size = len(pool.tokens) // len(data.pools)
    rng = np.random.default_rng(seed)
    shares = mixtures / mixtures.sum(axis=1, keepdims=True)
    rows = rows.clone()
    moments = (torch.zeros_like(rows), torch.zeros_like(rows))
    for step in range(max(steps)):
        active = sum(step < last for last in steps)
        drawn = [rng.choice(len(share), BATCH, p=share) * size for share in shares[:active]]
        picked = torch.from_numpy(np.stack(drawn) + rng.integers(0, size, (active, BATCH)))
        gradient = _gradient(network, rows[:active], tokens[picked], mask[picked])
        rates = torch.tensor([schedule.at(step, last) for last in steps[:active]])
        _adamw(rows[:active], gradient, [one[:active] for one in moments], rates, step)
    return rows


def _gradient(network: Network, rows: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """Gradient [M, P] of each model's mean loss on its answers' tokens, clipped; `tokens` and `mask` are [M, N, T]."""
    length = int((tokens != PAD).sum(dim=-1).max())
    tokens = tokens[..., :length]
    mask = mask[..., 1:length]
    parameters = rows.detach().requires_grad_()
    # computed in bfloat16; the parameters stay in float32
    logits = network.logits(parameters.bfloat16(), tokens[..., :-1])
    expected = tokens[..., 1:][mask]
    losses = functional.cross_entropy(logits[mask].float(), expected, reduction="none")
    # every model's own mean
    counts = mask.flatten(1).sum(dim=1)
    weights = (1 / counts).repeat_interleave(counts)
    (gradient,) = torch.autograd.grad((losses * weights).sum(), parameters)
    shrink: Tensor = CLIP / gradient.norm(dim=1, keepdim=True)
    return gradient * shrink.clamp(max=1.0)


def _adamw(
    rows: Tensor, gradient: Tensor, moments: Sequence[Tensor], rates: Tensor, step: int
) -> None:
    """One step, in place (Loshchilov and Hutter 2019), with a rate for each model [M]."""
    first, second = moments
    first.lerp_(gradient, 1 - BETAS[0])
    second.lerp_(gradient.square(), 1 - BETAS[1])
    mean = first / (1 - BETAS[0] ** (step + 1))
    deviation = (second / (1 - BETAS[1] ** (step + 1))).sqrt_().add_(1e-8)
    rate = rates[:, None]
    rows.mul_(1 - rate * WEIGHT_DECAY).sub_(rate * mean / deviation)


# ------------------------------------------------------------ a family


def trained(family: Family, network: Network, data: Data) -> tuple[Tensor, Tensor]:
    """The base [P] and what each tune adds to it [8, P]."""
    random = torch.Generator().manual_seed(family.seed % 2**63)
    rng = np.random.default_rng(family.seed)
    categories = family.categories
    base = train(
        network,
        network.start(random),
        data,
        np.ones((1, categories)),
        [BASE_STEPS[categories]],
        Schedule(rate=family.size.base_rate, warm=60, last=0.3),
        int(rng.integers(2**63)),
    )
    mixtures, steps = tuning(family, rng)
    order = np.argsort([-count for count in steps], kind="stable")
    tunes = train(
        network,
        base.expand(TUNES, -1),
        data,
        mixtures[order],
        [steps[tune] for tune in order],
        Schedule(rate=family.size.tune_rate, warm=10, last=0.05),
        int(rng.integers(2**63)),
    )
    place = np.argsort(order)
    return base[0], tunes[place] - base


def tuning(family: Family, rng: np.random.Generator) -> tuple[FloatArray, list[int]]:
    """Mixtures of the categories [8, C], and numbers of steps [8]."""
    lengths = np.ones(TUNES)
    if family.has("spread"):
        lengths = rng.permutation(np.geomspace(0.25, 2, TUNES))
    mixtures = specialists(family.categories, rng)
    if family.has("generalists"):
        mixtures = rng.dirichlet(np.full(family.categories, 2.0), TUNES) + 0.02
    if family.has("copies"):
        mixtures[6:] = mixtures[:2]
        lengths[6:] = 0.85 * lengths[:2]
    return mixtures, [max(8, round(family.steps * length)) for length in lengths]


def specialists(categories: int, rng: np.random.Generator) -> FloatArray:
    """Mixtures [8, C] with one or two skills of five, or two or three of ten, so that every skill has a specialist."""
    order = rng.permutation(categories)
    mixtures = np.full((TUNES, categories), REST)
    for tune in range(TUNES):
        places = [tune]
        if tune % 2:
            places.append(tune + 3)
        if categories == 10:
            places.append(tune + 8 if tune < 2 else tune + 5)
        mixtures[tune, order[np.array(places) % categories]] = 1.0
    return mixtures

"""Merge methods: each is one pure function on fp32 tensors.

To add one, from a module of your own too (docs/extending.md), write `def mine(tensors, weights): ...` on equal-shaped
fp32 arrays and put `Method(function=mine)` into `METHODS`. It is called block by block, so it must be elementwise; set
`whole=True` where it needs whole tensors (then all ingredients of one tensor are in memory at once). A method that only
needs inner products of the whole tensors (angles, norms) gives `coefficients` instead and stays streamed: weights [K]
and the Gram matrix [K, K] in, weights out.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from souping.core.fields import pick
from souping.core.text import is_user_code
from souping.core.types import UserError, Weights
from souping.merge.kernels import Combine, Float32, delta, linear

Gram = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Method:
    """Merge method: how tensors become one.

    `function(tensors, weights)` gets the ingredients in the recipe's order; with `base=True` the base model comes
    first, with weight 0, and `coefficients` sees the Gram matrix of the differences to it.
    """

    function: Combine
    coefficients: Callable[[Gram, Weights], Weights] | None = None
    base: bool = False
    whole: bool = False
    least: int = 1
    most: int | None = None

    def __call__(self, tensors: Sequence[Float32], weights: Sequence[float]) -> Float32:
        """The method on whole tensors, fp32 in and out: the plain form of what the engine streams."""
        values = tuple(weights)
        if self.coefficients is not None:
            values = self.weigh(gram(tensors, self.base), values)
        return self.function(tensors, values)

    def weigh(self, inner: Gram, weights: Weights) -> Weights:
        """The weights that `function` gets, from the weights of the recipe."""
        if self.coefficients is None:
            return weights
        if self.base:
            return (0.0, *self.coefficients(inner, weights[1:]))
        return self.coefficients(inner, weights)


def gram(tensors: Sequence[Float32], base: bool) -> Gram:
    """Inner products [K, K] in fp64 of the tensors, or with `base` of their differences to the first one."""
    wide = [tensor.astype(np.float64).ravel() for tensor in tensors]
    if base:
        wide = [tensor - wide[0] for tensor in wide[1:]]
    result = np.zeros((len(wide), len(wide)))
    for i, left in enumerate(wide):
        for j in range(i + 1):
            result[i, j] = result[j, i] = float((left * wide[j]).sum())
    return result


def slerp_weights(inner: Gram, weights: Weights) -> Weights:
    """Spherical interpolation of two tensors (Shoemake 1985) at t = w_1 / (w_0 + w_1).

    sin((1-t) a)/sin(a) and sin(t a)/sin(a) with a the angle between them; straight where |cos a| > 0.9995 or a tensor
    is zero.
    """
    t = weights[1] / (weights[0] + weights[1])
    norms = np.sqrt(np.diag(inner))
    if min(norms) <= 1e-8:
        return (1 - t, t)
    cosine = float(np.clip(inner[0, 1] / (norms[0] * norms[1]), -1, 1))
    if abs(cosine) > 0.9995:
        return (1 - t, t)
    angle = np.arccos(cosine)
    return (float(np.sin((1 - t) * angle) / np.sin(angle)), float(np.sin(t * angle) / np.sin(angle)))


def stock_weights(inner: Gram, weights: Weights) -> Weights:
    """Model Stock (arXiv 2403.19522, equation for N models): t = N c / (1 + (N-1) c).

    c is the mean cosine between the fine-tuned models' differences to the base; the soup is the base moved by t times
    their weighted mean difference (the paper's mean is the uniform one). A pole (1 + (N-1) c = 0) keeps the base.
    """
    count, norms = len(weights), np.sqrt(np.diag(inner))
    pairs = [(i, j) for i in range(count) for j in range(i)]
    cosine = float(np.mean([inner[i, j] / max(norms[i] * norms[j], 1e-12) for i, j in pairs]))
    below = 1 + (count - 1) * cosine
    t = count * cosine / below if abs(below) > 1e-6 else 0.0
    total = sum(weights)
    return tuple(t * weight / total for weight in weights)


def source(name: str) -> str | None:
    """Digest of the file of a method that is not this package's: its code is part of what a soup is."""
    function = get_method(name).function
    if not is_user_code(function):
        return None
    return hashlib.sha256(Path(inspect.getfile(function)).read_bytes()).hexdigest()


METHODS: dict[str, Method] = {
    "linear": Method(function=linear),
    "task_arithmetic": Method(function=delta, base=True),
    "slerp": Method(function=linear, coefficients=slerp_weights, least=2, most=2),
    "model_stock": Method(function=delta, coefficients=stock_weights, base=True, least=2),
}


def get_method(name: str) -> Method:
    """The method of that name.

    Raises:
        UserError: there is none; the nearest name is offered.
    """
    return METHODS[pick(name, METHODS, "merge.method", "; others run with merge=mergekit")]


def check_count(name: str, count: int) -> None:
    """Refuse a number of ingredients that the method is not defined for."""
    method = get_method(name)
    if count < method.least or (method.most is not None and count > method.most):
        wanted = f"exactly {method.most}" if method.most == method.least else f"at least {method.least}"
        raise UserError(f"merge.method={name} needs {wanted} ingredients with a weight above zero, there are {count}")


def check_shares(name: str, weights: Weights) -> None:
    """Refuse weights that the method takes no shares of: it is defined between its ingredients alone."""
    if get_method(name).coefficients is not None and (min(weights) < 0 or not sum(weights)):
        raise UserError(f"merge.method={name} needs weights that are not negative, not {list(weights)}")

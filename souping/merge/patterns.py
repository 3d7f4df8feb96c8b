"""Per-layer and per-pattern weights: `merge.overrides={layers.0-7:[..],*.mlp.*:[..]}`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence

from souping.core import Recipe, UserError, Weights
from souping.simplex import check_weights


def matcher(pattern: str) -> Callable[[str], bool]:
    """A test on tensor names.

    Without `*` or `?` the pattern is a run of dotted parts anywhere in the name; with them it has to match the whole
    name. A part `3-7` is a range of numbers, ends included. `layers.0-7` is the first eight layers.
    """
    wild = "*" in pattern or "?" in pattern
    ranges: list[range] = []
    text = "".join(_token(token, ranges) for token in re.split(r"(\*|\?|(?<![^.])\d+-\d+(?![^.]))", pattern))
    regex = re.compile(text if wild else rf"(?:.*\.)?{text}(?:\..*)?", re.DOTALL)

    def matches(name: str) -> bool:
        found = regex.fullmatch(name)
        return found is not None and all(int(n) in r for n, r in zip(found.groups(), ranges, strict=True))

    return matches


def _token(token: str, ranges: list[range]) -> str:
    if token in ("*", "?"):
        return ".*" if token == "*" else "."
    if re.fullmatch(r"\d+-\d+", token):
        low, high = token.split("-")
        ranges.append(range(int(low), int(high) + 1))
        return r"(\d{1,9})"
    return re.escape(token)


def check_overrides(overrides: Mapping[str, Sequence[float]]) -> tuple[tuple[str, Weights], ...]:
    """(pattern, weights) pairs in the written order; each list is a point of the simplex.

    Raises:
        UserError: an empty pattern or range, or weights that are negative or do not sum to one.
    """
    if not isinstance(overrides, Mapping):
        raise UserError(f"merge.overrides={overrides} must be a table of patterns and lists of weights")
    pairs = []
    for pattern, values in overrides.items():
        if not str(pattern) or isinstance(values, str) or not isinstance(values, Sequence):
            raise UserError(f"merge.overrides: {pattern!r} must be a pattern with a list of weights")
        if any(int(low) > int(high) for low, high in re.findall(r"(?<![^.])(\d+)-(\d+)(?![^.])", str(pattern))):
            raise UserError(f"merge.overrides.{pattern}: the range ends before it starts")
        if not all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
            raise UserError(f"merge.overrides.{pattern}={list(values)} must be numbers")
        pairs.append((str(pattern), check_weights(values, f"merge.overrides.{pattern}")))
    return tuple(pairs)


def fitted(
    overrides: Mapping[str, Sequence[float]], pool: Sequence[str], used: Sequence[str]
) -> list[list[str | list[float]]]:
    """[pattern, weights of the ingredients `used`] pairs of lists that are in the order of `pool`.

    A list (a mapping would not do: the order of patterns decides, and a recipe's hash sorts keys). A soup of a part of
    the pool takes that part's weights, scaled to sum to one; a pattern that gives them none leaves their own.

    Raises:
        UserError: a list has another length than the pool.
    """
    pairs: list[list[str | list[float]]] = []
    for pattern, values in check_overrides(overrides):
        if len(values) != len(pool):
            raise UserError(
                f"merge.overrides.{pattern} has {len(values)} weights for {len(pool)} candidates ({', '.join(pool)})"
            )
        kept = [values[pool.index(name)] for name in used]
        total = sum(kept)
        if total:
            pairs.append([pattern, kept if len(kept) == len(pool) else [value / total for value in kept]])
    return pairs


def overridden(recipe: Recipe, names: Sequence[str], default: Weights) -> Callable[[str], Weights]:
    """The weights of each tensor: of the first pattern in the recipe's `overrides` that matches, else `default`.

    Raises:
        UserError: the method is not linear, a list has another length than the recipe, or a pattern matches nothing.
    """
    pairs = [
        (str(pattern), tuple(float(w) for w in weights)) for pattern, weights in recipe.settings.get("overrides", [])
    ]
    if pairs and recipe.method != "linear":
        raise UserError(f"merge.overrides works with merge.method=linear only, not {recipe.method}")
    for pattern, weights in pairs:
        if len(weights) != len(recipe.weights):
            raise UserError(
                f"merge.overrides.{pattern} has {len(weights)} weights for {len(recipe.weights)} ingredients "
                f"({', '.join(recipe.ingredients)})"
            )
    tests = [(pattern, matcher(pattern), weights) for pattern, weights in pairs]
    for pattern, test, _ in tests:
        if not any(test(name) for name in names):
            near = difflib.get_close_matches(pattern, names, n=1, cutoff=0.3)
            hint = f"; a tensor's name is {near[0] if near else names[0]}"
            raise UserError(f"merge.overrides.{pattern} matches no tensor{hint}")
    return lambda name: next((weights for _, test, weights in tests if test(name)), default)

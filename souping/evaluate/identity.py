"""What identifies an evaluator: the key of its answers in the store, its name, and the look at a report."""

from __future__ import annotations

from collections.abc import Mapping

from souping.core.protocols import Evaluator
from souping.core.text import named
from souping.core.types import Json, UserError, digest

MEASURING = {
    "batch_size",
    "device",
    "threads",
    "workers",
    "seed",
    "sampling_seed",
    "random_seed",
    "numpy_random_seed",
    "torch_random_seed",
    "tensor_parallel_size",
    "enforce_eager",
}
"""Settings that make another measurement of the same claim: the machine, the batch and the draws of answers."""


def evaluator_fingerprint(evaluator: Evaluator) -> str:
    """Digest of everything that an answer or score depends on besides the model, the item and its block."""
    try:
        return digest(dict(evaluator.settings))
    except TypeError as error:
        plain = "a dict of texts, numbers, lists and dicts"
        raise UserError(f"evaluator {named(evaluator)}: settings are {plain}: {error}") from None


def title(evaluator: Evaluator) -> str:
    """Name in reports and messages."""
    settings = evaluator.settings
    return str(settings.get("evaluator") or settings.get("name") or type(evaluator).__name__)


def look(evaluator: Evaluator) -> str:
    """Digest of what a report measures: the settings without those of the machine, the batch and the random draws.

    pass@k depends on the number of answers to an item, a mean does not.
    """
    settings = _unmeasured(evaluator.settings)
    for name in ("decoding", "engine", "server"):
        inner = settings.get(name)
        if isinstance(inner, Mapping):
            settings[name] = _unmeasured(inner)
    aggregate = evaluator.scoring.aggregate
    measured: list[Json] = [settings, aggregate]
    if aggregate == "pass":
        measured.append(evaluator.sampling.answers_per_item)
    return digest(measured)


def _unmeasured(settings: Mapping[str, Json]) -> dict[str, Json]:
    return {name: value for name, value in settings.items() if name not in MEASURING}

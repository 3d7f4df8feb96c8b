"""How fast items are answered: stated, measured or assumed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

from souping.checkpoints.pool import ModelSize
from souping.core.fields import load_json
from souping.core.files import OUTPUTS
from souping.core.protocols import Evaluator
from souping.core.reading import read
from souping.core.types import Item, UserError, frozen
from souping.runs.requirements import Machine, on_gpu
from souping.search.adaptive import MOST_SAMPLES

# What is assumed where nothing was measured. Useful operations per second, on a GPU when decoding in batches.
CORE_OPERATIONS = 2e10
GPU_OPERATIONS = 5e13
CHARACTERS_PER_TOKEN = 4
# If the evaluator states no limit.
ANSWER_TOKENS = 64
# Seconds per item besides the arithmetic; small models need most of their time for these.
OVERHEAD = 0.005
# Bytes per second.
READ_SPEED = 2e9
HUB_SPEED = 5e7


@frozen
class Speed:
    """Items per second: stated by the user, measured in this store or by a check, or assumed as `reason` spells out.

    A check also measures the seconds that start a model (in an engine or a server), and the seconds that start a call
    for `batch` items (0: one call for all items of a stage).
    """

    items_per_second: float
    per_model: float = 0.0
    per_call: float = 0.0
    batch: int = 0
    # `stated`, `measured` or `assumed`
    basis: str
    reason: str

    def seconds(self, stage: PlannedStage, end: int) -> float:
        """Seconds that the answers of a stage take, the least (`end` 0) or the most (1) of them."""
        # Items of one request: a search in parts requests a split in at most MOST_SAMPLES samples.
        together = stage.items
        if stage.in_parts:
            together = -(-stage.items // MOST_SAMPLES)
        # Rounded up.
        calls = -(-stage.todo[end] // min(self.batch or together, together))
        return stage.todo[end] / self.items_per_second + calls * self.per_call


@frozen
class BenchmarkSpeed:
    """The speed that a check measured, that of the run's own benchmark."""

    benchmark: Speed


@frozen
class CheckFile:
    """What a plan reads of a check's file."""

    models: Any
    evaluator: str
    speeds: BenchmarkSpeed


def checked_speed(models: Sequence[ModelSize], evaluator: str) -> Speed | None:
    """What the newest check below `outputs/`, under any name, measured for these models under this evaluator."""
    sizes = [asdict(model) for model in models]
    files = sorted(OUTPUTS.glob("*/check_*.json"), key=lambda file: file.stat().st_mtime)
    for file in reversed(files):
        # A file that cannot be read is passed over.
        with suppress(UserError, OSError):
            check = read(CheckFile, load_json(file, dict[str, Any]))
            measured = check.speeds.benchmark
            is_same_setup = check.models == sizes and check.evaluator == evaluator
            if is_same_setup and measured.items_per_second > 0:
                reason = measured.reason.replace("just now", "by a check")
                return replace(measured, reason=reason)
    return None


def speed(
    stated: float | None,
    measured: float | None,
    evaluator: Evaluator,
    items: Sequence[Item],
    parameters: int,
    machine: Machine,
) -> Speed | None:
    """The rate of one evaluator on items: the `stated` or `measured` items per second, or else an assumed rate.

    None if nothing is known of the items or of the number of the model's `parameters`.
    """
    if stated is not None:
        return Speed(
            items_per_second=stated, basis="stated", reason=f"throughput={stated:g} items/s"
        )
    if measured is not None:
        reason = f"{measured:.3g} items/s, measured when these candidates answered before"
        return Speed(items_per_second=measured, basis="measured", reason=reason)
    if not items or not parameters:
        return None
    # Operations per second of the cores or GPUs that the evaluator uses.
    host = evaluator.hosting.host
    pace = CORE_OPERATIONS
    processor = "core"
    number = machine.cores
    if (host and host.gpus) or on_gpu(evaluator.hosting, machine):
        pace = GPU_OPERATIONS
        processor = "GPU"
        number = max(1, host.gpus) if host else 1
    if number > 1:
        processor += "s"

    # Tokens per item. A large limit leaves room, and few answers need 8 times the usual length.
    limit = evaluator.sampling.answer_tokens
    answer = ANSWER_TOKENS
    if limit is not None:
        answer = min(limit, 8 * ANSWER_TOKENS)
    characters = sum(len(str(item.prompt)) for item in items)
    if limit == 0:
        # Nothing is generated: the model reads the answers too.
        characters += sum(len(str(item.answer)) for item in items)
    tokens = characters / len(items) / CHARACTERS_PER_TOKEN + answer

    # Two operations per parameter and token (Kaplan et al. 2020, section 2.1), prompt and answer alike.
    rate = 1 / (2 * parameters * tokens / (pace * number) + OVERHEAD)
    where = f"{number} {processor} at {pace:.0e}"
    basis = f"{tokens:.0f} tokens per item, {where} operations/s, 5 ms per item"
    reason = f"{rate:.3g} items/s, assumed ({basis}); set your own with throughput=ITEMS_PER_SECOND"
    return Speed(items_per_second=rate, basis="assumed", reason=reason)


IntRange = tuple[int, int]


@frozen
class PlannedStage:
    """Item evaluations: `asked` in all, `todo` of them not in the store; (least, most) if the selection is open.

    With `in_parts` the search decides which soups answer how many items: the pairs are (expected, most), and `models`
    are the whole splits that the items would fill.
    """

    name: str
    models: IntRange
    items: int
    asked: IntRange
    todo: IntRange
    benchmark: str = ""
    in_parts: bool = False

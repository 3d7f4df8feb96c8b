"""What a run needs of disks, memory and GPUs, beside what this machine has. Bytes throughout."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from souping.core import UserError
from souping.merge.layout import human
from souping.planning import machine as machines
from souping.planning.machine import Machine
from souping.planning.weights import Model, weigh
from souping.report import texts
from souping.serving import SHARED_MEMORY

ITEM = {"float32": 4, "bfloat16": 2, "float16": 2}
PROGRAM = 1_500_000_000
"""Python, torch and transformers themselves, with the buffers of a soup that is mixed block by block."""
Kind = Literal["disk", "memory", "GPU memory"]


@dataclass(frozen=True, kw_only=True)
class Room:
    """`need` beside `have`, what there is of it in all (a disk: what is free), and `free`, what is free just now.

    `parts` says what the need is made of, `mends` what to do where it does not fit.
    """

    kind: Kind
    where: str
    need: int
    have: int
    free: int
    parts: tuple[str, ...]
    mends: str

    @property
    def fits(self) -> bool:
        return self.need <= self.have

    @property
    def tight(self) -> bool:
        return self.fits and self.need > self.free

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "fits": self.fits}

    def sentence(self) -> str:
        """Why a run cannot go on, and what to do, in one line."""
        need = f"{human(self.need)} ({', '.join(self.parts)})"
        return f"{self.where} has {human(self.have)}, the run needs {need}: {self.mends}"


def rooms(run: Any, models: Sequence[Model], machine: Machine, evaluators: Sequence[Any]) -> list[Room]:
    """Everything that can be too small; nothing where no model's size is known."""
    if not any(model.nbytes for model in models):
        return []
    return [
        *_disks(run, models, evaluators),
        _memory(run, models, machine, evaluators),
        *_gpus(run, models, machine, evaluators),
    ]


def check(run: Any, evaluators: Sequence[Any]) -> None:
    """Refuse a run that this machine cannot finish, before a model is fetched or loaded.

    Raises:
        UserError: a disk, the memory or a GPU is too small.
    """
    models = [weigh(candidate, getattr(run.merge, "allow_pickle", False)) for candidate in run.pool.resolve()]
    if any(model.trouble for model in models):
        return  # whoever opens the pool next says it better
    lacking = [room for room in rooms(run, models, machines.look(), evaluators) if not room.fits]
    if lacking:
        raise UserError("\n".join(room.sentence() for room in lacking[:2]))


def soup_bytes(models: Sequence[Model], merge: Any) -> int:
    """A soup on disk: as large as the largest candidate, in the merge's dtype; an adapter where adapters are kept."""
    kept = [m for m in models if m.adapter] if getattr(merge, "adapters", "") == "keep" else []
    largest = max(kept or models, key=lambda model: model.nbytes)
    dtype = getattr(merge, "dtype", None)
    return largest.parameters * ITEM[dtype] if dtype in ITEM else largest.nbytes


def module_bytes(models: Sequence[Model], dtype: str | None) -> int:
    """A model in memory: its parameters in `dtype` (auto and None: as stored)."""
    largest = max(models, key=lambda model: model.parameters)
    return largest.parameters * ITEM[dtype] if dtype in ITEM else largest.nbytes


def _disks(run: Any, models: Sequence[Model], evaluators: Sequence[Any]) -> list[Room]:
    """A room for each file system that is written to: the soup, downloads, a soup that is served as a folder."""
    wishes: list[tuple[Path, str, int, str]] = []
    if not run.stop_after:
        wishes.append((run.out, "the soup", soup_bytes(models, run.merge), "out=FOLDER on a larger disk"))
    fetched = sum(model.download for model in models)
    if fetched:
        wishes.append((_cache(), "downloads", fetched, "HF_HOME=FOLDER on a larger disk"))
    if any(getattr(evaluator, "wants", "module") != "module" for evaluator in evaluators):
        size = module_bytes(models, getattr(run.merge, "dtype", None))
        if not in_memory(size):
            wishes.append(
                (Path(tempfile.gettempdir()), "a soup for the server", size, "TMPDIR=FOLDER on a larger disk")
            )
    by_system: dict[int, list[tuple[Path, str, int, str]]] = {}
    for wish in wishes:
        by_system.setdefault(machines.room(wish[0])[1], []).append(wish)
    found = []
    for group in by_system.values():
        free = machines.room(group[0][0])[0]
        parts = tuple(f"{what} {human(size)}" for _, what, size, _ in group)
        mends = "make room, or " + " or ".join(mends for *_, mends in group)
        need = sum(size for _, _, size, _ in group)
        found.append(
            Room(
                kind="disk",
                where=f"the disk for {texts.listed([what for _, what, _, _ in group])}",
                need=need,
                have=free,
                free=free,
                parts=parts,
                mends=mends,
            )
        )
    return found


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def in_memory(size: int) -> bool:
    """Whether a passing soup of this size goes to shared memory, as `souping.serving.place` decides."""
    return SHARED_MEMORY.is_dir() and machines.room(SHARED_MEMORY)[0] > 2 * size


def on_gpu(evaluator: Any, machine: Machine) -> bool:
    """Whether a live module stands on a GPU."""
    device = str(getattr(evaluator, "device", "cpu"))
    return device.startswith("cuda") or (device == "auto" and bool(machine.gpus))


def _holder(evaluator: Any) -> Any:
    """The engine or server that holds the model in its own processes, or None."""
    parts = (getattr(evaluator, "server", None), getattr(evaluator, "engine", None))
    return next((p for p in parts if hasattr(p, "tensor_parallel_size") or hasattr(p, "interpreter")), None)


def _memory(run: Any, models: Sequence[Model], machine: Machine, evaluators: Sequence[Any]) -> Room:
    parts = [("program", PROGRAM)]
    held = max((_held(evaluator, models, machine) for evaluator in evaluators), default=0)
    if held:
        parts.append(("one model", held))
    if getattr(run.merge, "resident", "none") == "cpu":
        parts.append(("resident candidates", sum(model.nbytes for model in models)))
    if any(getattr(evaluator, "wants", "module") != "module" for evaluator in evaluators):
        size = module_bytes(models, getattr(run.merge, "dtype", None))
        if in_memory(size):
            parts.append((f"a soup in {SHARED_MEMORY}", size))
    return Room(
        kind="memory",
        where="this machine's memory",
        need=sum(size for _, size in parts),
        have=machine.memory,
        free=machine.available,
        parts=tuple(f"{what} {human(size)}" for what, size in parts),
        mends="use a smaller evaluator.dtype, merge.resident=none, or a larger machine",
    )


def _held(evaluator: Any, models: Sequence[Model], machine: Machine) -> int:
    """Main memory that one evaluator's model takes; a model for a GPU passes through it when it is loaded."""
    holder = _holder(evaluator)
    if holder is not None:  # vLLM and servers load shard by shard; without a GPU a server keeps it all
        pours = getattr(evaluator, "wants", "module") == "either"
        return module_bytes(models, holder.dtype) if pours or not machine.gpus else 0
    return module_bytes(models, getattr(evaluator, "dtype", None))


def _gpus(run: Any, models: Sequence[Model], machine: Machine, evaluators: Sequence[Any]) -> list[Room]:
    """Each kind of use of a GPU once: a live module on one, or a share of the model on each of several."""
    found: dict[str, Room] = {}
    for evaluator in evaluators:
        holder = _holder(evaluator)
        if holder is None and not on_gpu(evaluator, machine):
            continue
        if holder is not None and not machine.gpus and not hasattr(holder, "tensor_parallel_size"):
            continue  # transformers' server runs on the CPU too
        room = _gpu(run, models, machine, evaluator, holder)
        found.setdefault(f"{room.where} {room.parts}", room)
    return list(found.values())


def _gpu(run: Any, models: Sequence[Model], machine: Machine, evaluator: Any, holder: Any) -> Room:
    ways = int(getattr(holder, "tensor_parallel_size", 1))
    share = float(getattr(holder, "gpu_memory_utilization", 1.0))
    size = module_bytes(models, (holder or evaluator).dtype)
    parts = [(f"one model over {ways} GPUs" if ways > 1 else "one model", -(-size // ways))]
    if holder is None and getattr(run.merge, "resident", "none") == "device":
        parts.append(("resident candidates", sum(model.nbytes for model in models)))
    used = sorted(machine.gpus, key=lambda gpu: gpu.total)[-ways:] if len(machine.gpus) >= ways else []
    mends = "more GPUs: engine.tensor_parallel_size / server.tensor_parallel_size, or evaluator.dtype=bfloat16"
    return Room(
        kind="GPU memory",
        where=f"each of {ways} GPUs" if ways > 1 else "a GPU",
        need=sum(bytes_ for _, bytes_ in parts),
        have=int(share * min((gpu.total for gpu in used), default=0)),
        free=int(share * min((gpu.free for gpu in used), default=0)),
        parts=(*(f"{what} {human(bytes_)}" for what, bytes_ in parts), "the KV cache beside it"),
        mends=mends if machine.gpus else "this machine has no GPU that nvidia-smi shows",
    )

"""What the tests of `merge=accelerate` share: siblings with a tensor larger than a block, ranks that are threads."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from souping.merge.distributed import worker
from souping.merge.distributed.messages import LostError
from souping.merge.distributed.worker import Team
from souping.merge.local import LocalMerge
from souping.merge.plan import MergePlan
from souping.merge.writer import prepare
from tests.support.checkpoints import opened, random_tensors, save

ROWS = (1003, 601)  # more elements than a block, so that two ranks share a tensor, and no power of two
Siblings = dict[str, Path]


def siblings(folder: Path, *dtypes: torch.dtype, rows: tuple[int, ...] = (12, 12, 12), shards: int = 1) -> Siblings:
    """Models a, b, c: small tensors and a large one at the end."""
    found = {}
    for seed, (name, size) in enumerate(zip("abc", rows, strict=True)):
        tensors = random_tensors(seed, dtypes[seed % len(dtypes)], rows=size)
        large = torch.randn(ROWS, generator=torch.Generator().manual_seed(seed)).to(dtypes[seed % len(dtypes)])
        config = {"vocab_size": size, "torch_dtype": str(dtypes[seed % len(dtypes)]).removeprefix("torch.")}
        found[name] = save(folder / name, {**tensors, "model.z.weight": large}, config, shards)
    return found


def planned(folders: Siblings, weights: tuple[float, ...] = (0.2, 0.5, 0.3), **fields: Any) -> MergePlan:
    merge = LocalMerge(**fields)
    return merge.plan(merge.recipe(tuple(folders), weights, *opened(folders)), folders)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def nothing_left(out: Path) -> bool:
    return not out.exists() and not list(out.parent.glob(f".{out.name}*"))


def spoil(folders: Siblings, value: float) -> None:
    """Put a value near the end of the large tensor of b: rank 1's share."""
    path = folders["b"] / "model.safetensors"
    with path.open("r+b") as file:
        file.seek(-2 * 1000, os.SEEK_END)
        file.write(torch.tensor([value], dtype=torch.bfloat16).view(torch.int16).numpy().tobytes())


def audible() -> None:
    """Loggers as a fresh process has them: Hydra, and two ranks in one process, leave some of them mute."""
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("souping").propagate = True
    for name, logger in logging.Logger.manager.loggerDict.items():
        if name.startswith("souping") and isinstance(logger, logging.Logger):
            logger.disabled = False


def gone(numbers: list[int], seconds: float = 300.0) -> bool:
    """Whether these processes end within that time."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if not any(Path(f"/proc/{pid}").exists() for pid in numbers):
            return True
        time.sleep(0.05)
    return False


@dataclass
class Tables:
    """What the ranks of a test share."""

    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(2))
    slots: list[Any] = field(default_factory=lambda: [None, None])


class Threaded(Team):
    """A rank that is a thread; `group` is a `Tables`."""

    def gather(self, mine: Any) -> list[Any]:
        try:
            self.group.slots[self.rank] = mine
            self.group.barrier.wait(600)
            found = list(self.group.slots)
            self.group.barrier.wait(600)
            return found
        except threading.BrokenBarrierError:
            raise LostError("the ranks lost each other: closed") from None

    def tell(self, order: dict[str, Any]) -> None:
        self.gather(order)

    def hear(self) -> dict[str, Any]:
        order: dict[str, Any] = self.gather(None)[0]
        return order

    def leave(self) -> None:
        pass


def pair(local: int = 2) -> tuple[Team, Team]:
    tables = Tables()
    first, second = (Threaded(rank=r, ranks=2, local=local, gpu=None, group=tables, note=f"n{r}") for r in (0, 1))
    return first, second


@contextmanager
def running(target: Callable[[], Any]) -> Iterator[None]:
    thread = threading.Thread(target=target)
    thread.start()
    yield
    thread.join(600)
    assert not thread.is_alive()


def staging(plan: MergePlan, folder: Path) -> Path:
    folder.mkdir()
    prepare(plan, folder)
    return folder


def fill(team: Team, plan: MergePlan, stage: Path, leave: Callable[[], bool] = lambda: False) -> None:
    worker.fill(team, plan, stage, None, lambda _: None, leave)

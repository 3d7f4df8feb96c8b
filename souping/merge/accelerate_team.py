"""The ranks of one group, seen from inside: who am I, tell all, gather from all."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from souping.core import UserError
from souping.merge.accelerate_messages import LostError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


def launched() -> bool:
    """Whether `accelerate launch` started this process."""
    return "ACCELERATE_MIXED_PRECISION" in os.environ


def check_ranks(asked: int | None, ranks: int) -> None:
    """Refuse fewer ranks than were asked for. `asked` is None where nobody said; then a launch that meant several
    and started one is told by the address it prepared for the others.
    """
    silent = asked is None and ranks == 1 and launched() and "MASTER_ADDR" in os.environ
    if silent or (asked is not None and asked != ranks):
        wanted = "several ranks were" if asked is None else f"{asked} rank{'s were' if asked != 1 else ' was'}"
        raise UserError(
            f"{wanted} asked for and accelerate started {ranks}: launch with --multi_gpu (on CPUs too) and a "
            "--num_processes that --num_machines divides"
        )


@dataclass(frozen=True, kw_only=True)
class Team:
    """This rank among `ranks`, of which `local` are on this machine.

    Ranks only exchange small messages, over gloo even where they have GPUs: no weight travels between them. `gpu` is
    the device for the arithmetic, or None for the CPU.
    """

    rank: int
    ranks: int
    local: int
    gpu: torch.device | None
    group: Any
    note: str = ""

    @classmethod
    def join(cls, asked: int | None, timeout: float) -> Team:
        """Meet the other ranks; `timeout` (seconds) bounds this and every later exchange.

        Raises:
            UserError: there are not `asked` ranks; every rank raises it.
        """
        import torch
        from accelerate import PartialState

        patience = timedelta(seconds=timeout)
        on_gpu = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "").lower() != "true"
        state = PartialState(cpu=not on_gpu, timeout=patience)
        check_ranks(asked, state.num_processes)
        several = state.num_processes > 1
        group = torch.distributed.new_group(backend="gloo", timeout=patience) if several else None
        gpu, note = _arithmetic(state.device)
        local = int(os.environ.get("LOCAL_WORLD_SIZE", state.num_processes))
        return cls(rank=state.process_index, ranks=state.num_processes, local=local, gpu=gpu, group=group, note=note)

    def introduce(self) -> list[dict[str, Any]]:
        """`pid`, `device` and `note` of every rank, in their order."""
        return self.gather({"pid": os.getpid(), "device": str(self.gpu or "cpu"), "note": self.note})

    @property
    def spread(self) -> bool:
        """Whether the ranks are on several machines."""
        return self.local < self.ranks

    def tell(self, order: dict[str, Any]) -> None:
        """Rank 0: an order to all others, who `hear` it."""
        self._broadcast([order])

    def hear(self) -> dict[str, Any]:
        """The other ranks: the next order of rank 0."""
        box: list[dict[str, Any]] = [{}]
        self._broadcast(box)
        return box[0]

    def gather(self, mine: T) -> list[T]:
        """What every rank gives, in their order, to every rank."""
        if self.group is None:
            return [mine]
        import torch

        box: list[Any] = [None] * self.ranks
        _exchange(lambda: torch.distributed.all_gather_object(box, mine, group=self.group))
        return box

    def _broadcast(self, box: list[Any]) -> None:
        if self.group is not None:
            import torch

            _exchange(lambda: torch.distributed.broadcast_object_list(box, src=0, group=self.group))

    def leave(self) -> None:
        """The end of the group, reached by all ranks."""
        if self.group is not None:
            import torch

            torch.distributed.destroy_process_group()


def _exchange(talk: Callable[[], Any]) -> None:
    try:
        talk()
    except RuntimeError as error:
        raise LostError(f"the ranks lost each other: {str(error).splitlines()[0]}") from error


def _arithmetic(device: torch.device) -> tuple[torch.device | None, str]:
    """The GPU if its rounding is that of the specification, and a note if it is not."""
    if device.type != "cuda":
        return None, ""
    from souping.merge.accelerate_mix import agrees

    if agrees(device):
        return device, ""
    return None, f"{device} rounds otherwise than the specification: its rank works on the CPU"

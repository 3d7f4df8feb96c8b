"""Rank of `merge=accelerate`: `accelerate launch -m souping.merge.distributed.worker` starts it, not people.

Each rank mixes its share of a soup's bytes, and all hear how the others do. Rank 0 has the launcher's standard input:
one JSON line a soup, `{"plan": ..., "stage": ...}`; the end of the file ends the group. It answers on what was its
standard output: `{"ready": N, "pids": [...]}` once, then for each soup any number of `{"progress": [done, total]}` and
`{"warning": text}`, and `{"done": true}` or `{"failed": ...}`. Whatever libraries print goes to standard error.
"""

from __future__ import annotations

import argparse
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from souping.core.child import LAUNCHER, end_with
from souping.core.protocols import Progress
from souping.core.system import cores
from souping.core.types import UserError
from souping.merge.distributed.messages import Failure, LostError, line, overheard, pack, parse, unpack
from souping.merge.plan import MergePlan
from souping.merge.writer import THREADS, ShardWriter

if TYPE_CHECKING:
    import torch

LINGER = 5.0  # seconds that a rank stays when others are lost: the launcher shall see first who died
IDLE = 10.0  # seconds between signs of life while nothing is asked for
Send = Callable[[dict[str, Any]], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 1 where the ranks lost each other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--timeout", type=float, required=True)
    options = parser.parse_args(arguments)
    if LAUNCHER in os.environ:
        end_with(int(os.environ[LAUNCHER]))
    send = claim_stdout()
    try:
        team = Team.join(options.ranks, options.timeout)
    except UserError as error:
        if int(os.environ.get("RANK", 0)) == 0:
            send({"failed": pack(error)})
        return 0
    try:
        if team.rank == 0:
            lead(team, Inbox(sys.stdin.buffer), send, options.timeout)
        else:
            serve(team)
        team.leave()
    except LostError as error:
        print(error, file=sys.stderr, flush=True)
        time.sleep(LINGER)
        return 1
    return 0


def claim_stdout() -> Send:
    """A sender on what was standard output, which from now on is standard error. A reader that is gone is no error:
    its end of standard input says so too.
    """
    protocol = os.dup(1)
    os.dup2(2, 1)

    def send(message: dict[str, Any]) -> None:
        view = memoryview(line(message))
        with suppress(BrokenPipeError):
            while view:
                view = view[os.write(protocol, view) :]

    return send


class Inbox:
    """Lines of a stream, read in a thread, so that its end is seen during work."""

    def __init__(self, stream: BinaryIO) -> None:
        self.closed = False
        self._lines: queue.Queue[bytes | None] = queue.Queue()
        threading.Thread(target=self._read, args=(stream,), name="souping-inbox", daemon=True).start()

    def _read(self, stream: BinaryIO) -> None:
        for raw in stream:
            self._lines.put(raw)
        self.closed = True
        self._lines.put(None)

    def get(self, seconds: float) -> bytes | None:
        """The next line; None at the end. Raises queue.Empty after that time."""
        return self._lines.get(timeout=seconds)


def lead(team: Team, inbox: Inbox, send: Send, timeout: float) -> None:
    """Rank 0: pass on every line to the others and fill it with them, until the end of the file."""
    members = team.introduce()
    send({"ready": team.ranks, "pids": [m["pid"] for m in members], "devices": [m["device"] for m in members]})
    for member in members:
        if member["note"]:
            send({"warning": member["note"]})
    while True:
        try:
            raw = inbox.get(min(IDLE, timeout / 3))
        except queue.Empty:
            team.tell({"verb": "wait"})
            continue
        order = parse(raw) if raw is not None else None
        if order is None:
            team.tell({"verb": "end"})
            return
        team.tell({"verb": "fill", **order})
        send(_answer(team, order, send, inbox))


def _answer(team: Team, order: dict[str, Any], send: Send, inbox: Inbox) -> dict[str, Any]:
    """Write one soup and say how it went."""

    def progress(done: int, total: int) -> None:
        send({"progress": [done, total]})

    try:
        plan = MergePlan.from_json(order["plan"])
        fill(team, plan, Path(order["stage"]), progress, lambda text: send({"warning": text}), lambda: inbox.closed)
    except LostError:
        raise
    except Exception as error:
        return {"failed": pack(error)}
    return {"done": True}


def serve(team: Team) -> int:
    """The other ranks: fill with rank 0 whatever it says, until it says end; rank 0 reports what goes wrong.

    Returns the exit status, 0.
    """
    team.introduce()
    while (order := team.hear())["verb"] != "end":
        if order["verb"] == "fill":
            try:
                plan = MergePlan.from_json(order["plan"])
                fill(team, plan, Path(order["stage"]), None, lambda _: None, lambda: False)
            except LostError:
                raise
            except Exception:
                continue
    return 0


BEAT = 0.25  # seconds between two exchanges while all are at work
Warn = Callable[[str], None]


def fill(
    team: Team, plan: MergePlan, stage: Path, progress: Progress | None, warn: Warn, leave: Callable[[], bool]
) -> None:
    """Fill the prepared shards in `stage`. Every rank calls this with the same plan; all return, or raise, together.

    Each rank works in a thread while the ranks exchange how far they are, so a failure ends the others within a beat.
    `progress`, `warn` and `leave` (asked whether to give up) are those of rank 0.

    Raises:
        UserError, OSError, RuntimeError: of the first rank that failed, on every rank.
        LostError: a rank died or hangs.
    """
    with overheard() as warnings:
        share = _Share(team, plan, stage)
        try:
            while not _beat(team, share, warnings, plan.nbytes, progress, warn, leave):
                pass
        finally:
            share.stop()


def _beat(
    team: Team,
    share: _Share,
    warnings: list[str],
    total: int,
    progress: Progress | None,
    warn: Warn,
    leave: Callable[[], bool],
) -> bool:
    """One exchange; returns whether all shares are filled."""
    over = share.wait(BEAT)
    news, warnings[:] = list(warnings), []
    mine = {"over": over, "done": share.done, "failure": share.failure, "news": news, "leave": leave()}
    states: list[dict[str, Any]] = team.gather(mine)
    if team.rank == 0:
        for text in dict.fromkeys(text for state in states for text in state["news"]):
            warn(text)
        if progress is not None:
            progress(sum(state["done"] for state in states), total)
    failures = [state["failure"] for state in states if state["failure"]]
    if failures:
        raise unpack(failures[0])
    if any(state["leave"] for state in states):
        raise InterruptedError("the process that asked for the soup is gone")
    return all(state["over"] for state in states)


class _Share:
    """This rank's share, filled in a thread of its own."""

    def __init__(self, team: Team, plan: MergePlan, stage: Path) -> None:
        self.done = 0
        self.failure: Failure | None = None
        self._team, self._plan, self._stage = team, plan, stage
        self._over, self._stopped = threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="souping-share", daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Whether the share is filled, or failed, within that time."""
        return self._over.wait(seconds)

    def stop(self) -> None:
        """Give up at the next block, if it is not done; returns when the files are closed."""
        self._stopped = True
        self._thread.join()

    def _run(self) -> None:
        team = self._team
        try:
            with shard_writer(team, self._plan, self._stage) as writer:
                writer.fill(team.rank, team.ranks, _threads(team), self._advance)
            if team.spread:  # another machine's flush does not reach what this one holds back
                _flush(self._stage, self._plan.shards)
        except BaseException as error:
            self.failure = _placed(team, pack(error))
        finally:
            self._over.set()

    def _advance(self, done: int, _: int) -> None:
        if self._stopped:
            raise InterruptedError("stopped")
        self.done = done


def shard_writer(team: Team, plan: MergePlan, stage: Path) -> ShardWriter:
    """The writer on the rank's device."""
    if team.gpu is None:
        return ShardWriter(plan, stage)
    from souping.merge.distributed.cuda import CudaShardWriter

    return CudaShardWriter(plan, stage, team.gpu)


def _threads(team: Team) -> int:
    """The machine's cores shared among its ranks; files are read by more threads where a GPU does the arithmetic."""
    from souping.merge.distributed.cuda import READERS

    return max(1, min(cores() // team.local, THREADS if team.gpu is None else READERS))


def _placed(team: Team, failure: Failure) -> Failure:
    """With the rank's machine named where there are several: each may see other files."""
    if not team.spread or failure["kind"] == "bug":
        return failure
    where = f"{failure['file']}: " if failure.get("file") else ""
    place = f"rank {team.rank} on {socket.gethostname()}; all machines must see the same folders"
    return {"kind": "user", "text": f"{where}{failure['text']} ({place})"}


def _flush(stage: Path, names: tuple[str, ...]) -> None:
    for name in names:
        descriptor = os.open(stage / name, os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


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
    group: torch.distributed.ProcessGroup | None
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
    from souping.merge.kernels.gpu import agrees

    if agrees(device):
        return device, ""
    return None, f"{device} rounds otherwise than the specification: its rank works on the CPU"


if __name__ == "__main__":
    raise SystemExit(main())

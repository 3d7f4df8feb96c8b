"""A rank of `merge=accelerate`: `accelerate launch -m souping.merge.accelerate_worker` starts it, not people.

Rank 0 has the launcher's standard input: one JSON line a soup, `{"plan": ..., "stage": ...}`; the end of the file ends
the group. It answers on what was its standard output: `{"ready": N, "pids": [...]}` once, then for each soup any number
of `{"progress": [done, total]}` and `{"warning": text}`, and `{"done": true}` or `{"failed": ...}`. Whatever libraries
print goes to standard error.
"""

from __future__ import annotations

import argparse
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from souping.core import UserError
from souping.merge.accelerate_messages import LostError, line, pack, parse
from souping.merge.accelerate_share import fill
from souping.merge.accelerate_team import Team
from souping.merge.layout import MergePlan

LINGER = 5.0  # seconds that a rank stays when others are lost: the launcher shall see first who died
IDLE = 10.0  # seconds between signs of life while nothing is asked for
Send = Callable[[dict[str, Any]], None]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, or 1 where the ranks lost each other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--timeout", type=float, required=True)
    options = parser.parse_args(arguments)
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
    """Rank 0: pass on every line to the others and cook it with them, until the end of the file."""
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
    """Cook one soup and say how it went."""

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
    """The other ranks: cook with rank 0 whatever it says, until it says end; rank 0 reports what goes wrong.

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


if __name__ == "__main__":
    raise SystemExit(main())

"""One plan by the ranks of `accelerate launch ... -m souping.merge PLAN.json OUT`, on one machine or several."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from souping.core import UserError
from souping.merge.accelerate_messages import LostError
from souping.merge.accelerate_share import fill
from souping.merge.accelerate_team import Team
from souping.merge.accelerate_worker import LINGER, serve
from souping.merge.average import Progress
from souping.merge.cook import Shares
from souping.merge.layout import MergePlan

log = logging.getLogger("souping.merge")


def together(job: Callable[[Shares], int], asked: int | None, timeout: float) -> int:
    """Every rank calls this; rank 0 does `job`, whose shares all cook. Returns the exit status of this rank: that of
    `job` on rank 0 and 0 on the others, so that rank 0's error comes first; 2 on all that lost a rank.
    """
    try:
        team = Team.join(asked, timeout)
    except UserError as error:
        return _say(error) if int(os.environ.get("RANK", 0)) == 0 else 0
    try:
        status = _first(team, job) if team.rank == 0 else _other(team)
        team.leave()
        return status
    except LostError as error:
        if team.rank == 0:
            _say(error, "; nothing was written")
        sys.stderr.flush()
        time.sleep(LINGER)
        return 2


def _first(team: Team, job: Callable[[Shares], int]) -> int:
    """Rank 0: set the table, cook with the others, tell them that it is over."""
    for member in team.introduce():
        if member["note"]:
            log.warning("%s", member["note"])
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _clear)

    def shares(plan: MergePlan, stage: Path, progress: Progress | None) -> None:
        team.tell({"verb": "fill", "plan": plan.to_json(), "stage": str(stage)})
        try:
            fill(team, plan, stage, progress, log.warning, lambda: False)
        except LostError:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher ends the ranks now: clear away first
            raise

    try:
        status = job(shares)
    except Exception as error:
        if not isinstance(error, LostError):
            team.tell({"verb": "end"})
        raise
    team.tell({"verb": "end"})
    return status


def _other(team: Team) -> int:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # without a trace: rank 0 says what is to be said
    return serve(team)


def _clear(number: int, _: Any) -> NoReturn:
    """A launcher that is stopped, or has lost another rank, stops its ranks: leave through the clean-up."""
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)
    print("stopped by the launcher; nothing was written", file=sys.stderr, flush=True)
    raise SystemExit(128 + number)


def _say(error: Exception, more: str = "") -> int:
    print(f"{error}{more}", file=sys.stderr, flush=True)
    return 2

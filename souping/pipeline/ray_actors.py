"""`executor=ray`: actors that hold the pool and the evaluators, on this machine or on a cluster.

An actor takes a block at a time; the blocks of one soup go to one actor, so that it is made once. None waits for
another. What a lost actor had goes to the others, and a new one takes its place.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated

from annotated_types import Interval

from souping.core.executor_protocols import Executor, Worker, Workers
from souping.core.fields import Count, component
from souping.core.system import cores
from souping.core.text import first_line, install
from souping.core.types import Answered, BlockTask, Missing, UserError

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle
    from ray.exceptions import RayTaskError


log = logging.getLogger(__name__)
Resource = Annotated[float, Interval(ge=0, lt=1e6)]
PATIENCE = 20.0
"""Seconds without an answer after which it is looked whether Ray still has a machine: an actor that waits for one waits
for ever."""


class PoolActor:
    """What runs in an actor's process."""

    def __init__(self, open_worker: Callable[[], Worker]) -> None:
        self._worker = open_worker()

    def fingerprints(self) -> dict[str, str]:
        return dict(self._worker.fingerprints)

    def answer(self, task: BlockTask) -> Answered:
        return self._worker.answer(task)


@component
class RayExecutor(Executor):
    """Ray actors, each with `gpus` (fractions share one) and `cpus`; as many as there is room for, unless said.

    `address` is a running cluster's, `auto` the one that this machine is part of; without one ($RAY_ADDRESS counts) Ray
    is started on this machine and ended with the run. After more than `restarts` lost actors the run gives up.
    """

    actors: Count | None = None
    gpus: Resource = 0.0
    cpus: Resource = 1.0
    address: str | None = None
    restarts: Annotated[int, Interval(ge=0)] = 3

    def __post_init__(self) -> None:
        for name, value in (("gpus", self.gpus), ("cpus", self.cpus)):
            if value > 1 and value != int(value):
                raise UserError(f"executor.{name}={value:g} must be a fraction of one, or a whole number")
        if not self.gpus and not self.cpus:
            raise UserError("executor.gpus=0 and executor.cpus=0: give an actor one of them, or both")

    def needs(self) -> list[Missing]:
        """The package, or what this machine or the cluster that was named lacks."""
        if not find_spec("ray"):
            return [Missing(what="the package ray is not installed", mends=install("ray"))]
        lacks = _unreachable(self.cluster) if self.cluster else self.misfit(_here())
        return [Missing(what=lacks)] if lacks else []

    @property
    def cluster(self) -> str | None:
        return self.address or os.environ.get("RAY_ADDRESS")

    @property
    def share(self) -> dict[str, float]:
        """What an actor takes, by Ray's name of it."""
        return {name: each for name, each in (("GPU", self.gpus), ("CPU", self.cpus)) if each}

    def room(self, held: Mapping[str, float]) -> int:
        """Actors that fit into what is there."""
        return min(int(held.get(name, 0) / each + 1e-6) for name, each in self.share.items())

    def misfit(self, held: Mapping[str, float]) -> str:
        """Why the actors do not fit into what is there; empty where they do."""
        wanted = self.actors or 1
        if wanted <= self.room(held):
            return ""
        each = " and ".join(f"{number:g} {name}" for name, number in self.share.items())
        has = ", ".join(f"{held.get(name, 0):g} {name}" for name in self.share)
        return (
            f"executor=ray: {wanted} actor{'s' * (wanted > 1)} with {each} each do not fit into {has}; "
            "set executor.actors, executor.gpus or executor.cpus to what there is"
        )

    def start(self, here: Worker, elsewhere: Callable[[], Worker]) -> Workers:
        return RayWorkers(self, here, elsewhere)


@dataclass(eq=False)
class Seat:
    """Place of an actor: the actor, and the tasks that it has, oldest first."""

    actor: ActorHandle[PoolActor]
    tasks: dict[ObjectRef[Answered], BlockTask] = field(default_factory=dict)


class RayWorkers(Workers):
    """Actors on their way. Ray is started with the first task: a run that finds all in the store starts none."""

    def __init__(self, settings: RayExecutor, here: Worker, elsewhere: Callable[[], Worker]) -> None:
        self._settings, self._here, self._elsewhere = settings, here, elsewhere
        self._seats: list[Seat] = []
        self._own = False

    @property
    def slots(self) -> int:
        """Inquiries that may be open: one an actor."""
        return len(self._seats) or self._settings.actors or self._room()

    def _room(self) -> int:
        """Actors that there is room for, as far as it is known before Ray is started."""
        if self._settings.cluster:
            self._begin()
            return len(self._seats)
        return max(1, self._settings.room(_here()))

    def put(self, task: BlockTask) -> None:
        """To the actor that has the soup, or to the one with the least to do."""
        self._begin()
        same = [seat for seat in self._seats for one in seat.tasks.values() if one.recipe == task.recipe]
        seat = same[0] if same else min(self._seats, key=lambda seat: len(seat.tasks))
        seat.tasks[seat.actor.answer.remote(task)] = task

    def take(self) -> tuple[BlockTask, Answered]:
        import ray
        from ray.exceptions import RayError, RayTaskError

        while True:
            refs = [ref for seat in self._seats for ref in seat.tasks]
            done, _ = ray.wait(refs, num_returns=1, timeout=PATIENCE)
            if not done:
                _check_nodes()
                continue
            ready = done[0]
            seat = next(seat for seat in self._seats if ready in seat.tasks)
            try:
                answered = ray.get(ready)
            except RayTaskError as error:
                raise _told(error) from error
            except RayError as error:
                self._replace(seat, error)
            else:
                return seat.tasks.pop(ready), answered

    def _begin(self) -> None:
        if self._seats:
            return
        import ray

        if not ray.is_initialized():
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            self._own = True
            _connect(self._settings.cluster)
        held = ray.cluster_resources()
        if misfit := self._settings.misfit(held):
            self.close()
            raise UserError(misfit)
        wanted = self._settings.actors or self._settings.room(held)
        self._seats = [Seat(actor) for actor in [self._actor() for _ in range(wanted)]]
        self._check()

    def _actor(self) -> ActorHandle[PoolActor]:
        import ray

        kind = ray.remote(PoolActor).options(num_gpus=self._settings.gpus, num_cpus=self._settings.cpus)
        return kind.remote(self._elsewhere)

    def _check(self) -> None:
        """Refuse actors whose machine decides otherwise than this one: their answers would have another key.

        Raises:
            UserError: an actor cannot be made, or its device, dtype or threads are not those of here.
        """
        import ray
        from ray.exceptions import RayActorError, RayTaskError

        own = dict(self._here.fingerprints)
        for seat in self._seats:
            try:
                theirs: dict[str, str] = ray.get(seat.actor.fingerprints.remote())
            except RayTaskError as error:
                raise _told(error) from error
            except RayActorError as error:
                raise UserError(f"executor=ray: an actor cannot be started: {_why(error)}") from error
            if theirs != own:
                raise UserError(
                    "executor=ray: an actor would answer by other settings than this machine: set evaluator.device and "
                    "evaluator.threads (and dtype) instead of leaving them to each machine"
                )

    def _replace(self, seat: Seat, error: Exception) -> None:
        """Give a lost actor's tasks back, oldest first, and put another in its place."""
        self.lost += 1
        if self.lost > self._settings.restarts:
            raise UserError(
                f"executor=ray: {self.lost} actors were lost, the last: {_why(error)}\nwhat was answered is in "
                "the store, the same command goes on (executor.restarts allows more)"
            ) from error
        log.warning("executor=ray: an actor was lost (%s); another takes over its work", _why(error))
        tasks, seat.tasks = deque(seat.tasks.values()), {}
        seat.actor = self._actor()
        while tasks:
            self.put(tasks.popleft())

    def close(self) -> None:
        """End the actors, and Ray where it was started here."""
        if not self._seats and not self._own:
            return
        import ray

        for seat in self._seats:
            ray.kill(seat.actor)
        self._seats = []
        if self._own:
            self._own = False
            ray.shutdown()


def _connect(address: str | None) -> None:
    import ray

    try:
        ray.init(
            # "local", since None would join whatever cluster was started last on this machine, dead or another's
            address=address or "local",
            include_dashboard=None if address else False,
            num_cpus=None if address else cores(),
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=True,
        )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = f"executor.address={address}" if address else "executor=ray"
        raise UserError(f"{where}: Ray cannot be reached: {first_line(error)}") from error


def _check_nodes() -> None:
    """Refuse to wait for actors that have nowhere to run."""
    import ray

    if not any(node["Alive"] for node in ray.nodes()):
        raise UserError(
            "executor=ray: Ray has no living node left (its log says why)\nwhat was answered is in the store, the same "
            "command goes on"
        )


def _told(error: RayTaskError) -> UserError:
    """What a worker's code raised, in a line."""
    cause = error.cause if isinstance(error.cause, Exception) else error
    said = f"executor=ray: {type(cause).__name__}: {first_line(cause)}"
    return cause if isinstance(cause, UserError) else UserError(said)


def _why(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:200]


def _unreachable(address: str) -> str:
    """Why a cluster's address cannot be right; Ray itself tries for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return ""
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        return f"nothing answers at executor.address={address} ({first_line(error)})"
    return ""


def _here() -> dict[str, float]:
    """What this machine has, by Ray's names."""
    return {"GPU": len(_gpus_here()), "CPU": cores()}


def _gpus_here() -> list[str]:
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shown is not None:
        return [name for name in shown.split(",") if name.strip()]
    return [name for name in os.listdir("/dev") if name.startswith("nvidia") and name[6:].isdigit()]

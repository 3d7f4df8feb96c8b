"""`executor=ray`: actors that hold the pool and the evaluators, on this machine or on a cluster.

An actor takes one block at a time. The blocks of one soup go to one actor, so that the soup is made once. Ray restarts
an actor that is lost and gives it its blocks again.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

from souping.core.cuda import visible_gpus
from souping.core.fields import Bounds, Count, component
from souping.core.protocols import Executor, Workers
from souping.core.system import cores
from souping.core.text import first_line, missing, stripped_lines
from souping.core.types import Missing, Request, Response, UserError

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle


log = logging.getLogger(__name__)
RESTARTS = 3
"""How often each actor is restarted before the run gives up."""
Resource = Annotated[float, Bounds(ge=0, lt=1e6)]
RAY_SILENCE_S = 20.0
"""Seconds without a response after which it is checked that Ray still has a machine: otherwise actors wait forever."""
STORED = "the answers so far are in the store: the same command resumes"


class PoolActor:
    """What runs in an actor's process. Its methods also return an id of the process, which tells a restarted actor."""

    def __init__(self, open_worker: Callable[[], Workers]) -> None:
        self._worker = open_worker()
        self._process = uuid.uuid4().hex

    def fingerprints(self) -> tuple[str, dict[str, str]]:
        return self._process, dict(self._worker.fingerprints)

    def evaluate(self, request: Request) -> tuple[str, Response | None]:
        return self._process, self._worker.put(request)


@component
class RayExecutor(Executor):
    """Ray actors, each with `gpus` (fractions share one) and `cpus`; by default as many as there is room for.

    `address` is a running cluster's, `auto` the one that this machine is part of. Without one ($RAY_ADDRESS counts),
    Ray is started on this machine and ends with the run. An actor that is lost is restarted up to three times.
    """

    actors: Count | None = None
    gpus: Resource = 0.0
    cpus: Resource = 1.0
    address: str | None = None

    def __post_init__(self) -> None:
        for name, value in (("gpus", self.gpus), ("cpus", self.cpus)):
            # Ray has no such amounts.
            if value > 1 and value != int(value):
                raise UserError(
                    f"executor.{name}={value:g} must be a fraction of one, or a whole number"
                )
        if not self.gpus and not self.cpus:
            raise UserError(
                "executor.gpus=0 and executor.cpus=0: give an actor one of them, or both"
            )

    def needs(self) -> list[Missing]:
        if absent := missing("ray"):
            return absent
        # Only a cluster knows what it has; this machine can be checked now.
        if self.cluster:
            return []
        if misfit := self.misfit(_resources()):
            return [Missing(what=misfit)]
        return []

    @property
    def cluster(self) -> str | None:
        return self.address or os.environ.get("RAY_ADDRESS")

    @property
    def share(self) -> dict[str, float]:
        """What an actor takes, by Ray's name of it."""
        amounts = {"GPU": self.gpus, "CPU": self.cpus}
        return {name: amount for name, amount in amounts.items() if amount}

    def room(self, resources: Mapping[str, float]) -> int:
        """Number of actors that fit into these resources."""
        fitting = []
        for name, amount in self.share.items():
            # 1 / 0.1 may be a little less than 10.
            fitting.append(int(resources.get(name, 0) / amount + 1e-6))
        return min(fitting)

    def misfit(self, resources: Mapping[str, float]) -> str:
        """Why the actors do not fit into these resources; empty if they do."""
        actors = self.actors or 1
        if actors <= self.room(resources):
            return ""
        share = " and ".join(f"{amount:g} {name}" for name, amount in self.share.items())
        room = ", ".join(f"{resources.get(name, 0):g} {name}" for name in self.share)
        return (
            f"executor=ray: {actors} actor{'s' * (actors > 1)} with {share} each do not fit into {room}; "
            "lower executor.actors, executor.gpus or executor.cpus"
        )

    def start(self, here: Workers, elsewhere: Callable[[], Workers]) -> Workers:
        return RayWorkers(self, here, elsewhere)


class RayWorkers(Workers):
    """Ray's actors. Ray is started with the first request: a run that finds everything in the store starts none."""

    def __init__(
        self, settings: RayExecutor, here: Workers, elsewhere: Callable[[], Workers]
    ) -> None:
        self._settings = settings
        # The worker of this process, whose fingerprints the actors must have.
        self._here = here
        # Makes the worker of an actor.
        self._elsewhere = elsewhere
        self._actors: list[ActorHandle[PoolActor]] = []
        # {response to come: (number of the actor, request)}
        self._sent: dict[ObjectRef[tuple[str, Response]], tuple[int, Request]] = {}
        # Ids of the actors' processes.
        self._processes = set[str]()
        self._started_ray = False

    @property
    def slots(self) -> int:
        """One request per actor."""
        settings = self._settings
        # Only a cluster knows how many fit.
        if not self._actors and not settings.actors and settings.cluster:
            self._start()
        # At least one: actors that do not fit are an error when they start.
        return len(self._actors) or settings.actors or max(1, settings.room(_resources()))

    def put(self, request: Request) -> None:
        """Send to the actor that has the soup, or to the one with the least to do."""
        self._start()
        load = Counter(actor for actor, _ in self._sent.values())
        actor = min(range(len(self._actors)), key=lambda number: load[number])
        for owner, sent_request in self._sent.values():
            if sent_request.recipe == request.recipe:
                actor = owner
                break
        self._sent[self._actors[actor].evaluate.remote(request)] = actor, request

    def take(self) -> tuple[Request, Response]:
        """The next request that an actor answered; counts the actors that were lost and restarted."""
        import ray

        ready: list[ObjectRef[tuple[str, Response]]] = []
        while not ready:
            ready, _ = ray.wait(list(self._sent), num_returns=1, timeout=RAY_SILENCE_S)
            if not ready and not any(node["Alive"] for node in ray.nodes()):
                raise UserError(
                    f"executor=ray: Ray has no living node left (its log says why)\n{STORED}"
                )
        (reference,) = ready
        _, request = self._sent.pop(reference)
        process, response = _result(reference)
        # Not one of the processes that `_check` met.
        if process not in self._processes:
            self._processes.add(process)
            self.lost += 1
            log.warning(
                "executor=ray: an actor was lost and restarted; its blocks are computed again"
            )
        return request, response

    def _start(self) -> None:
        """Start the actors, and Ray if it does not run; does nothing if there are actors.

        Raises:
            UserError: Ray cannot be reached, its resources do not fit the settings, or an actor was refused. Actors,
                and a Ray that was started here, are gone then.
        """
        if self._actors:
            return
        import ray

        if not ray.is_initialized():
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            self._started_ray = True
            _connect(self._settings.cluster)
        resources = ray.cluster_resources()
        try:
            if misfit := self._settings.misfit(resources):
                raise UserError(misfit)
            actor = ray.remote(PoolActor).options(
                num_gpus=self._settings.gpus,
                num_cpus=self._settings.cpus,
                max_restarts=RESTARTS,
                max_task_retries=RESTARTS,
            )
            count = self._settings.actors or self._settings.room(resources)
            self._actors = [actor.remote(self._elsewhere) for _ in range(count)]
            self._check()
        except UserError:
            self.close()
            raise

    def _check(self) -> None:
        """Refuse actors that would decide settings otherwise than this machine: their answers would have another key.

        Raises:
            UserError: an actor cannot be started, or has another device, dtype or number of threads.
        """
        # All actors start at the same time.
        for reference in [actor.fingerprints.remote() for actor in self._actors]:
            process, fingerprints = _result(reference)
            self._processes.add(process)
            if fingerprints != self._here.fingerprints:
                raise UserError(
                    "executor=ray: an actor would answer with other settings than this machine: set evaluator.device "
                    "and evaluator.threads (and dtype) instead of leaving them to each machine"
                )

    def close(self) -> None:
        """End the actors, and Ray if it was started here."""
        if not self._actors and not self._started_ray:
            return
        import ray

        for actor in self._actors:
            ray.kill(actor)
        self._actors = []
        self._sent = {}
        if self._started_ray:
            self._started_ray = False
            ray.shutdown()


def _connect(address: str | None) -> None:
    """Join the cluster at an address, or start Ray on this machine (UserError if Ray cannot be reached)."""
    import ray

    try:
        ray.init(
            # "local", since None would join whatever cluster was started last on this machine, dead or another's
            address=address or "local",
            # A running cluster has its own dashboard and cores.
            include_dashboard=None if address else False,
            num_cpus=None if address else cores(),
            log_to_driver=False,
            logging_level=logging.ERROR,
            configure_logging=True,
        )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        where = f"executor.address={address}" if address else "executor=ray"
        raise UserError(f"{where}: Ray cannot be reached: {first_line(error)}") from error


def _result(reference: ObjectRef[Any]) -> Any:
    """What an actor returned.

    Raises:
        UserError: its code raised an error, or the actor is gone; in one or two lines.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        return ray.get(reference)
    except RayTaskError as error:
        cause = error.cause if isinstance(error.cause, Exception) else error
        if isinstance(cause, UserError):
            raise cause from error
        raise UserError(f"executor=ray: {type(cause).__name__}: {first_line(cause)}") from error
    except RayError as error:
        # Ray's message ends with the reason.
        lines = stripped_lines(error)
        reason = (lines or [type(error).__name__])[-1][:200]
        raise UserError(
            f"executor=ray: an actor is gone or cannot start: {reason}\n{STORED}"
        ) from error


@cache
def _resources() -> dict[str, float]:
    """What this machine has, by Ray's names."""
    return {"GPU": len(visible_gpus()), "CPU": cores()}

"""Tasks that several threads do."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

ThreadTask = Callable[[], None]


def run_tasks(tasks: Iterable[ThreadTask], threads: int) -> None:
    """Do all tasks, taken in order by so many threads. Raises what the first of them that failed raised."""
    queue = iter(enumerate(tasks))
    failures = dict[int, BaseException]()
    lock = threading.Lock()

    def drain() -> None:
        while True:
            with lock:
                if failures:
                    return
                try:
                    number, task = next(queue)
                except StopIteration:
                    return
            try:
                task()
            except BaseException as error:
                failures[number] = error

    if threads == 1:
        drain()
    else:
        with ThreadPoolExecutor(threads, thread_name_prefix="souping") as pool:
            try:
                for future in [pool.submit(drain) for _ in range(threads)]:
                    future.result()
            except BaseException as error:  # an interrupt: the threads end at their next task
                failures[-1] = error
                raise
    if failures:
        raise failures[min(failures)]

"""`executor=files`: soups are evaluated elsewhere, and their results may take weeks.

A run hands out files and ends. The same run, started again by `ask`, finds what was told since, stores it as any other
answer, and goes on to the next soups that it needs.
"""

from __future__ import annotations

import errno
import shlex
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from souping.core.fields import Count, component
from souping.core.files import disk_space
from souping.core.open_files import lock
from souping.core.protocols import Evaluator, Executor, Workers
from souping.core.text import named
from souping.core.types import ItemScores, Recipe, Request, Response, UserError, digest
from souping.evaluate.command import ITEMS_FILE, CommandEvaluator
from souping.merge.plan import human
from souping.merge.soup_files import RECIPE
from souping.pipeline.evaluation import Evaluation
from souping.pipeline.models import OpenPool
from souping.pipeline.open_soups import FAILED, MODEL, OUT, OpenRequest, OpenSoups
from souping.pipeline.search_order import ORDER_FILE, SearchOrder
from souping.pipeline.serving import write_soup
from souping.pipeline.settings import RunSettings
from souping.report.progress import Progress

FULL = (errno.ENOSPC, errno.EDQUOT)


class Waiting(Exception):
    """End of a run that needs results from elsewhere. Its arguments are the lines that say which."""


@component
class FilesExecutor(Executor):
    """Files for somebody else's jobs: up to `open` soups at once, each as a recipe or, with `write`, as a folder."""

    open: Count = 1
    write: bool = False
    evaluates_here = False

    def start(self, here: Workers, elsewhere: object) -> Workers:
        raise LookupError("FileWorkers also need the folder of the run")


def check_executor(settings: RunSettings) -> None:
    """Refuse evaluators whose results nobody can tell (UserError)."""
    if not isinstance(settings.executor, FilesExecutor):
        return
    others = [entry.evaluator for entry in settings.also if entry.evaluator is not None]
    for evaluator in (settings.evaluator, *others):
        if not isinstance(evaluator, CommandEvaluator):
            raise UserError(
                f"executor=files needs results from logs, and {named(evaluator)} has none: use evaluator=command"
            )


class FileWorkers(Workers):
    """Open soups of a run. A request is answered at once if its result was told."""

    def __init__(
        self,
        settings: RunSettings,
        executor: FilesExecutor,
        pool: OpenPool,
        evaluators: Mapping[str, Evaluator],
        progress: Progress,
    ) -> None:
        self._settings = settings
        self._executor = executor
        self._pool = pool
        self._evaluators = evaluators
        self._progress = progress
        self._stack = ExitStack()
        self._wait_for_other_asks()
        self.order = SearchOrder(settings.run_dir / ORDER_FILE)
        self._soups = OpenSoups(settings.run_dir)
        with self._soups.alone():
            self._soups.tidy()
        self._numbers = {self._soups.request(n).key: n for n in self._soups.numbers()}
        # Soups that this run needs: {number: how it is listed}, those without a place, and all that were open before.
        self._open: dict[int, str] = {}
        self._later = set[str]()
        self._requested = set[int]()
        self._full = False

    def _wait_for_other_asks(self) -> None:
        file = self._stack.enter_context((self._settings.run_dir / ".ask.lock").open("a"))
        try:
            lock(file.fileno(), wait=False)
        except BlockingIOError:
            self._progress.say("another process asks for soups of this run: waiting for its end")
            lock(file.fileno())

    @property
    def slots(self) -> int:
        # A search asks for no soup that could not be handed out.
        return max(1, len(self._open)) if self._full else self._executor.open

    def put(self, request: Request) -> Response | None:
        items = [item.fingerprint for item in request.items]
        key = digest([request.recipe.fingerprint, request.benchmark, items])
        number = self._numbers.get(key)
        if number is None:
            self._add(key, request)
            return None
        self._requested.add(number)
        answers = self._soups.answers(number)
        if answers is not None:
            return Response(records=tuple(answers), seconds=0.0)
        if number not in self._open:
            self._show(number, request.recipe)
        return None

    def _add(self, key: str, request: Request) -> None:
        """Open a soup, unless there are enough, or no space."""
        recipe = request.recipe
        if len(self._open) >= self._executor.open or not self._has_space(recipe):
            self._later.add(key)
            return
        evaluator = self._evaluators[request.benchmark]
        assert isinstance(evaluator, CommandEvaluator)
        content = OpenRequest(
            key=key,
            items=tuple(item.id for item in request.items),
            higher_is_better=evaluator.higher_is_better,
        )
        number = max(self._soups.numbers(), default=0) + 1
        try:
            with self._soups.new(number, recipe, request.items, content) as folder:
                self._write(recipe, folder)
        except OSError as error:
            # A quota is not in the free space.
            if error.errno not in FULL or not self._open:
                raise
            self._full = True
            self._later.add(key)
            return
        self._numbers[key] = number
        self._requested.add(number)
        self._open[number] = "new"

    def _show(self, number: int, recipe: Recipe) -> None:
        """List a soup that was open before, with what it lacks: its job failed, or it was listed without a model."""
        if not self._has_space(recipe):
            self._later.add(str(number))
            return
        with self._soups.alone():
            folder = self._soups.reopened(number)
        self._write(recipe, folder)
        failed = folder / FAILED
        self._open[number] = "again" if failed.exists() else "open"
        failed.unlink(missing_ok=True)

    def _write(self, recipe: Recipe, folder: Path) -> None:
        if self._executor.write and not (folder / MODEL).exists():
            write_soup(self._pool.merge_pool, recipe, folder / MODEL)

    def _has_space(self, recipe: Recipe) -> bool:
        """Whether the disk has space for a soup; that of a candidate is made of links."""
        pool = self._pool.merge_pool
        if not self._executor.write or pool.candidate_folder(recipe) is not None:
            return True
        free, _ = disk_space(self._settings.run_dir)
        if free >= pool.soup_bytes:
            return True
        if not self._open:
            raise UserError(
                f"{self._settings.run_dir} has {human(free)} free, a soup takes {human(pool.soup_bytes)}: free some "
                "space, or leave --write out"
            )
        self._full = True
        return False

    def take(self) -> tuple[Request, Response]:
        with self._soups.alone():
            for number in self._soups.numbers("open"):
                # Another run has stored its answers.
                if number not in self._requested:
                    self._soups.close(number)
        raise Waiting(*self._lines())

    def _lines(self) -> list[str]:
        """What is open, and what to type next."""
        run_dir = self._settings.run_dir.absolute()
        stage = self._progress.current
        lines = []
        if stage.startswith(("report", "analyse")):
            lines.append("the search is over, and its choice is frozen: this is for the report")
        count = f"{len(self._open)} open"
        if self._later:
            count += f", {len(self._later)} more when these are told"
            if self._full:
                count += " (the disk is full)"
        lines.append(f"{stage}: {count}")
        soups = {number: run_dir / "open" / str(number) for number in self._open}
        for number, folder in soups.items():
            model = folder / (MODEL if self._executor.write else RECIPE)
            size = len(self._soups.request(number).items)
            state = self._open[number]
            lines.append(f"{number:5}  {state:5}  {model}  {folder / ITEMS_FILE}  {size} items")
        if not soups:
            return lines
        number, folder = next(iter(soups.items()))
        evaluator = self._evaluators[""]
        assert isinstance(evaluator, CommandEvaluator)
        if not self._executor.write:
            store = self._settings.store_path.absolute()
            words = [f"recipe={folder / RECIPE}", f"out={folder / MODEL}", f"store.path={store}"]
            lines.append(f"make it     python -m souping +experiment=rebuild {shlex.join(words)}")
        command = evaluator.words(folder / MODEL, folder / ITEMS_FILE, folder / OUT)
        place = shlex.quote(str(run_dir))
        return [
            *lines,
            f"evaluate it {shlex.join(command)}",
            f"tell it     python -m souping tell {place} {number}",
            f"            (or {number}=LOG; a failed job: {number}={FAILED})",
            f"go on       python -m souping ask {place} -n {self._executor.open}",
        ]

    def close(self) -> None:
        self._stack.close()


class OrderedEvaluation(Evaluation):
    """Evaluation whose searches keep to an order. Requests that are new wait until all that are answered were taken."""

    @property
    def order(self) -> SearchOrder:
        assert isinstance(self._workers, FileWorkers)
        return self._workers.order

    @property
    def slots(self) -> int:
        if self.order.next is None:
            return 0 if self._done else super().slots
        verb, request = self.order.next
        # All that is open was asked before: this request may be as well.
        return request if verb == "ask" else 0

    def submit(self, request: Request) -> None:
        """Take a request of a search, whose first one has number 1."""
        if request.number == 1:
            self.order.begin_search()
        self.order.take(("ask", request.number))
        super().submit(request)

    def collect(self) -> tuple[Request, ItemScores]:
        """The next answered request by the order; of new ones that with the lowest number."""
        numbers = [pending.request.number for pending in self._done]
        number = min(numbers, default=0)
        if self.order.next is not None:
            number = self.order.next[1]
        while number not in numbers:
            self._workers.take()
        self.order.take(("tell", number))
        # `super` takes the first.
        self._done.rotate(-numbers.index(number))
        return super().collect()

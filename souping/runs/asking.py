"""`executor=files`: soups are evaluated elsewhere, and their results may take weeks.

A run hands out files and ends. The same run, started again by `ask`, finds what was told since, stores it as any other
answer, and goes on to the next soups that it needs.
"""

from __future__ import annotations

import errno
import json
import shlex
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from souping.answers.evaluation import Evaluation
from souping.core.fields import Count, component
from souping.core.files import disk_space
from souping.core.parsing import read_json
from souping.core.protocols import Evaluator, Executor, Workers
from souping.core.system import program
from souping.core.text import human, named
from souping.core.types import (
    Item,
    ItemScores,
    Recipe,
    Request,
    Response,
    UserError,
    digest,
    frozen,
)
from souping.evaluate.command import ITEMS_FILE
from souping.merge.soup_files import RECIPE
from souping.report.progress import Progress
from souping.runs.open_soups import (
    FAILED_JOB,
    MODEL_FOLDER,
    MOVABLE_KEYS,
    OUT,
    AskedSoup,
    SearchOrder,
    answers,
    asked_soup,
    asked_soups,
    free,
    new_soup,
    request_key,
)
from souping.runs.settings import RunSettings
from souping.search.loop import RecipeEvaluator
from souping.soups.models import RunPool
from souping.soups.serving import write_soup

DISK_FULL_ERRORS = (errno.ENOSPC, errno.EDQUOT)
LATER = ""
"""State of a soup that is not written yet. The others are new, open and again (its job failed)."""


@frozen
class OpenSoup:
    """A soup that waits for its evaluation, as docs/large-runs.md describes it."""

    id: int
    state: str
    step: str
    recipe: str
    model: str
    items: str
    categories: Mapping[str, int]
    out: str
    make: Sequence[str]
    evaluate: Sequence[str]


class Waiting(BaseException):
    """End of a run that needs results for `soups`. The exception's arguments are lines for the user that say so.

    Like an interrupt it is no `Exception`: an analysis that searches must not take it for a fault.
    """

    def __init__(self, soups: Sequence[OpenSoup], *lines: str) -> None:
        super().__init__(*lines)
        self.soups = soups


@component
class FilesExecutor(Executor):
    """Files for somebody else's jobs: up to `max_open` soups at once, each as a recipe or, with `write_models`, as
    a folder. `FileWorkers` hands them out.
    """

    max_open: Count = 1
    write_models: bool = False
    min_items: Count = 100
    evaluates_here = False

    def handing_out(self, max_open: int | None, write_models: bool) -> FilesExecutor:
        return replace(
            self,
            max_open=max_open or self.max_open,
            write_models=write_models or self.write_models,
        )

    def start(self, here: Workers, elsewhere: Callable[[], Workers]) -> Workers:
        raise LookupError("FileWorkers also need the folder of the run")


def check_executor(settings: RunSettings) -> None:
    """Refuse evaluators whose results nobody can tell (UserError)."""
    if settings.executor.evaluates_here:
        return
    others = [entry.evaluator for entry in settings.extra_benchmarks if entry.evaluator is not None]
    for evaluator in (settings.evaluator, *others):
        if evaluator.hosting.command is None:
            raise UserError(
                f"executor=files needs results from logs, and {named(evaluator)} has none: use evaluator=command"
            )


class FileWorkers(Workers):
    """Soups that a run asks for. A request whose result `tell` has stored is answered at once."""

    def __init__(
        self,
        settings: RunSettings,
        pool: RunPool,
        evaluators: Mapping[str, Evaluator],
        progress: Progress,
        items: str,
    ) -> None:
        """Wait for the end of other processes that ask for soups of this run; `items` is the digest of its splits.

        Raises:
            UserError: settings, items or models are not those that the run began with.
        """
        config = read_json(json.dumps(settings.config), _without_places)
        models = [candidate.fingerprint for candidate in pool.candidates]
        # Waits until no other process has the order's file.
        self.order = SearchOrder(settings.run_dir, digest([config, items, models]))
        self._settings = settings
        self._executor = settings.executor
        self._pool = pool.merge_pool
        self._evaluators = evaluators
        self._progress = progress
        self.min_items = settings.executor.min_items
        soups = asked_soups(settings.run_dir)
        self._folders = {asked_soup(folder)["key"]: folder for folder in soups.values()}
        if len(self._folders) < len(soups):
            raise UserError(
                f"{settings.run_dir / 'asked'}: a folder is a copy of another: remove it"
            )
        self._last = max(soups, default=0)
        # {key of a request: its state} and {key: request} of what this run waits for.
        self._waiting: dict[str, str] = {}
        self._requests: dict[str, Request] = {}
        # Whether the disk has no space for another model.
        self._full = False

    @property
    def slots(self) -> int:
        # On a full disk there are no more slots than soups that wait: the search asks for no further one.
        return len(self._waiting) if self._full else self._executor.max_open

    def put(self, request: Request) -> Response | None:
        """The answers if `tell` has stored them; else None, and the soup is handed out now or later."""
        key = request_key(request)
        folder = self._folders.get(key)
        if folder is not None:
            records = answers(folder, [item.id for item in request.items])
            if records:
                # Nobody knows how long somebody else's job took.
                return Response(records=records, seconds=0.0)
        if key not in self._waiting:
            self._waiting[key] = self._hand_out(key, folder, request)
            self._requests[key] = request
        return None

    def _hand_out(self, key: str, folder: Path | None, request: Request) -> str:
        """Write what a soup lacks in its `folder`, or a new folder if that is None; returns the soup's state.

        The state is LATER if enough soups are open, or the disk has no space.
        """
        open_states = [state for state in self._waiting.values() if state != LATER]
        if folder is None and len(open_states) >= self._executor.max_open:
            return LATER
        try:
            if folder is None:
                return self._add(key, request)
            self._write(request.recipe, folder)
        except OSError as error:
            models = [path for path in self._folders.values() if (path / MODEL_FOLDER).exists()]
            # There will be space once the soups of these models are evaluated.
            if error.errno not in DISK_FULL_ERRORS or not models:
                raise
            self._full = True
            return LATER
        # A failed job may be tried again.
        failed = (folder / FAILED_JOB).exists()
        (folder / FAILED_JOB).unlink(missing_ok=True)
        return "again" if failed else "open"

    def _write(self, recipe: Recipe, folder: Path) -> None:
        """Write the model into a soup's folder, if models are written and it is not there."""
        if not self._executor.write_models or (folder / MODEL_FOLDER).exists():
            return
        self._check_space(recipe)
        stage = folder / ".model"
        # A killed process may have left it.
        shutil.rmtree(stage, ignore_errors=True)
        write_soup(self._pool, recipe, stage)
        stage.rename(folder / MODEL_FOLDER)

    def _check_space(self, recipe: Recipe) -> None:
        """Raise what a full disk raises, before a soup is half written. A candidate takes no space: it is links."""
        free_bytes, _ = disk_space(self._settings.run_dir)
        size = self._pool.soup_bytes
        if free_bytes < size and self._pool.candidate_folder(recipe) is None:
            reason = f"{human(free_bytes)} free, a soup takes {human(size)}: leave --write-models out, or free space"
            raise OSError(errno.ENOSPC, reason, str(self._settings.run_dir))

    def _add(self, key: str, request: Request) -> str:
        """Write the folder of a soup that was never asked for; returns its state."""
        content = AskedSoup(
            key=key,
            items=[item.id for item in request.items],
            categories=[item.category for item in request.items],
            higher_is_better=self._evaluators[request.benchmark].unit.higher_is_better,
        )
        folder = self._settings.run_dir / "asked" / str(self._last + 1)
        with new_soup(folder, request, content) as stage:
            self._write(request.recipe, stage)
        self._last += 1
        self._folders[key] = folder
        return "new"

    def take(self) -> tuple[Request, Response]:
        """End the run (`Waiting`): no response comes while it runs."""
        # Models of soups that this run does not wait for: another run may have stored their answers.
        for key in self._folders.keys() - self._waiting.keys():
            free(self._folders[key])
        soups = [self._open_soup(key) for key, state in self._waiting.items() if state != LATER]
        raise Waiting(soups, *self._lines(soups))

    def _open_soup(self, key: str) -> OpenSoup:
        """What somebody has to know to evaluate a soup, by the key of its request."""
        folder = self._folders[key].absolute()
        request = self._requests[key]
        command = self._evaluators[request.benchmark].hosting.command
        # `check_executor` refuses evaluators without one.
        assert command is not None
        items = folder / ITEMS_FILE
        model = folder / MODEL_FOLDER
        make = []
        if not self._executor.write_models:
            store = self._settings.store_path.absolute()
            words = [str(folder / RECIPE), f"out={model}", f"store={store}"]
            make = [*program().split(), "rebuild", *words]
        return OpenSoup(
            id=int(folder.name),
            state=self._waiting[key],
            step=self._progress.current,
            recipe=str(folder / RECIPE),
            model=str(model),
            items=str(items),
            categories=Counter(item.category for item in request.items),
            out=str(folder / OUT),
            make=make,
            evaluate=command(model, items, folder / OUT),
        )

    def _lines(self, soups: Sequence[OpenSoup]) -> list[str]:
        """What is open, and what to type next, as lines for the terminal."""
        step = self._progress.current
        lines = []
        # Soups of these steps are no longer chosen among.
        if step.startswith(("test", "analyse")):
            lines.append("the search is done and the weights are fixed; the test needs:")
        count = f"{step}: {len(soups)} open"
        if later := len(self._waiting) - len(soups):
            count += f", {later} more when they are told"
        if self._full:
            count += " (the disk is full)"
        lines.append(count)
        for soup in soups:
            model = soup.recipe if soup.make else soup.model
            size = sum(soup.categories.values())
            lines.append(f"{soup.id:>5}  {soup.state:5}  {model}  {soup.items}  {size} items")
        # One example is enough.
        for soup in soups[:1]:
            lines += self._next_steps(soup)
        return lines

    def _next_steps(self, soup: OpenSoup) -> list[str]:
        """The commands that make and evaluate a soup, tell its results and continue the run."""
        run_dir = shlex.quote(str(self._settings.run_dir.absolute()))
        go_on = self._settings.command
        # A later process was started by `ask`, whose own command continues the run.
        if self.order.is_new:
            go_on = f"{program()} ask {run_dir} -n {self._executor.max_open}"
        lines = [f"make     {shlex.join(soup.make)}"] if soup.make else []
        return [
            *lines,
            f"evaluate {shlex.join(soup.evaluate)}",
            f"tell     {program()} tell {run_dir} {soup.id}    (or {soup.id}=LOG, {soup.id}={FAILED_JOB})",
            f"go on    {go_on}",
        ]

    def close(self) -> None:
        self.order.close()


class OrderedSearch(RecipeEvaluator):
    """Evaluation for searches that repeat the order of the run's file, and continue it where that ends."""

    def __init__(self, evaluation: Evaluation, workers: FileWorkers) -> None:
        self.full_batch = evaluation.full_batch
        self.min_items = evaluation.min_items
        self._evaluation = evaluation
        self._workers = workers
        self._order = workers.order

    @property
    def whole_splits(self) -> bool:
        return self._evaluation.whole_splits

    def scores(self, recipe: Recipe, items: Sequence[Item]) -> ItemScores:
        return self._evaluation.scores(recipe, items)

    def all_scores(self, soups: Sequence[Recipe], items: Sequence[Item]) -> list[ItemScores]:
        return self._evaluation.all_scores(soups, items)

    @property
    def slots(self) -> int:
        """Number of requests that may be open now: 0 means that the search must take an answer first."""
        # Where the file ends, all answers are taken before anything new is requested.
        if self._order.next is None:
            return 0 if self._evaluation.answered else self._evaluation.slots
        verb, number, _ = self._order.next
        # Request n was made while at most n - 1 were open: with n slots it is made again.
        return number if verb == "ask" else 0

    def submit(self, request: Request) -> None:
        self._order.take(("ask", request.number, request_key(request)))
        self._evaluation.submit(request)

    def collect(self) -> tuple[Request, ItemScores]:
        """(request, its scores): the next request in the file's order; after that order, the answered request with the
        lowest number.

        Raises:
            Waiting: it is not answered yet.
        """
        answered = self._evaluation.answered
        # Requests count from 1, so that 0 is none.
        number = min(answered, default=0)
        if self._order.next is not None:
            _, number, _ = self._order.next
        if number not in answered:
            # Nobody has answered it: this raises `Waiting`.
            self._workers.take()
        self._order.take(("tell", number, request_key(answered[number].request)))
        return self._evaluation.collect(number)


def _without_places(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object of the configuration, from its (key, value) pairs, without what may differ between machines."""
    return {key: value for key, value in pairs if key not in MOVABLE_KEYS}

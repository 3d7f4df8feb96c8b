"""Scorers of the user's own, named in the configuration: `benchmark.scorers={name: my_module.my_function}`.

A file of items names a scorer and imports nothing; what a name stands for is said where the run is configured.
"""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from types import ModuleType

from souping.core.fields import pick
from souping.core.text import first_line
from souping.core.types import Item, OwnScorer, UserError
from souping.evaluate.scoring.judge import Judge

Known = Mapping[tuple[str, str, str], float]
"""{(question, scorer, answer's text): score}"""
Grade = Callable[[Sequence[Item], Sequence[str], Known], tuple[list[float], UserError | None]]
"""grade(items, outputs, what is known) -> (scores, the first error); NaN where a scorer could not be called."""


def load(scorers: Mapping[str, str], taken: Mapping[str, object]) -> dict[str, OwnScorer]:
    """{name: scorer}; `taken` are names that are built in.

    Raises:
        UserError: a name is taken, or what it stands for cannot be imported, called or read.
    """
    for name in scorers:
        if name in taken:
            raise UserError(f"benchmark.scorers.{name}: {name} is a scorer already: give yours another name")
    return {name: _own(name, path) for name, path in scorers.items()}


def _own(name: str, path: str) -> OwnScorer:
    where = f"benchmark.scorers.{name}={path}"
    module, function = _imported(path, where)
    if inspect.isclass(function) or not callable(function):
        raise UserError(f"{where} is no function of (item, output): name one, or an object that can be called")
    if isinstance(function, Judge):
        return OwnScorer(name=name, function=function, digest=function.fingerprint, threads=function.threads)
    return OwnScorer(name=name, function=function, digest=_source(module, function, path, where))


def _imported(path: str, where: str) -> tuple[ModuleType, Callable[[Item, str], float]]:
    """The module that holds it, and what is called."""
    parent, _, attribute = path.rpartition(".")
    if not parent:
        raise UserError(f"{where} names no module: write my_module.my_function")
    try:
        module = import_module(parent)
    except ModuleNotFoundError as error:
        if error.name and (parent == error.name or parent.startswith(f"{error.name}.")):
            raise UserError(f"{where}: no module {error.name} in this folder, PYTHONPATH or installed") from None
        raise UserError(f"{where}: {parent} cannot be imported: {first_line(error)}") from error
    except Exception as error:  # whatever the module does while it is imported
        raise UserError(f"{where}: {parent} cannot be imported: {type(error).__name__}: {first_line(error)}") from error
    names = [name for name in vars(module) if not name.startswith("_") or name == attribute]
    return module, vars(module)[pick(attribute, names, f"{where}: name in {parent}")]


def _source(module: ModuleType, function: Callable[[Item, str], float], path: str, where: str) -> str:
    """Digest of the files that decide what it says: that of the name, and that of the function or its class."""
    inner = inspect.unwrap(function)
    files: list[Path] = []
    for part in (module, inner if inspect.isroutine(inner) else type(inner)):
        try:
            files.append(Path(inspect.getsourcefile(part) or ""))
        except TypeError:
            raise UserError(f"{where} has no Python source to know it by: call it in a function of your own") from None
    texts = [file.read_bytes() for file in dict.fromkeys(files) if file.is_file()]
    return hashlib.sha256(b"\0".join([path.encode(), *texts])).hexdigest()


def graded(item: Item, output: str) -> float:
    """Score of an output by the item's own scorer.

    Raises:
        UserError: it fails, or gives something else than a fraction of 1; scorer, file and item are named.
    """
    own = item.own
    assert own is not None
    try:
        value = own.function(item, output)
    except UserError:
        raise
    except Exception as error:  # code of the user's
        raise UserError(
            f"scorer {own.name} ({_place(own)}) fails on item {item.id}: {type(error).__name__}: {first_line(error)}"
        ) from error
    fine = isinstance(value, int | float) and math.isfinite(value) and 0 <= value <= 1
    if not fine:
        raise UserError(f"scorer {own.name} ({_place(own)}) gives {value!r:.60} for item {item.id}, not 0 to 1")
    return float(value)


def _place(own: OwnScorer) -> str:
    inner = inspect.unwrap(own.function)
    part = inner if inspect.isroutine(inner) else type(inner)
    try:
        return f"{inspect.getsourcefile(part)}:{inspect.getsourcelines(part)[1]}"
    except (OSError, TypeError):
        return "no source"


def grades(items: Sequence[Item], outputs: Sequence[str], known: Known) -> tuple[list[float], UserError | None]:
    """Scores of outputs on items by their own scorers: equal answers are judged once, several at a time where a scorer
    allows it. After an error nothing more is begun; what was scored by then is kept."""
    keys = [(item.question, item.scoring, output) for item, output in zip(items, outputs, strict=True)]
    asked = {key: item for key, item in zip(keys, items, strict=True) if key not in known}
    scores, errors = dict(known), list[UserError]()

    def one(key: tuple[str, str, str]) -> None:
        if errors:
            return
        try:
            scores[key] = graded(asked[key], key[2])
        except UserError as error:
            errors.append(error)

    threads = min((item.own.threads for item in asked.values() if item.own), default=1)
    with ThreadPoolExecutor(threads, thread_name_prefix="souping-score") if threads > 1 else nullcontext() as pool:
        list(pool.map(one, asked) if pool else map(one, asked))
    return [scores.get(key, math.nan) for key in keys], errors[0] if errors else None

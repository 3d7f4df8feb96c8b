"""User's scorers, named in the configuration: `benchmark.scorers={name: my_module.my_function}`.

A file of items only names a scorer and imports nothing; the configuration says what the name stands for.
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
from typing import Any

from souping.core.fields import pick
from souping.core.text import first_line
from souping.core.types import Item, UserError, UserScorer
from souping.evaluate.scoring.judge import Judge

Known = Mapping[tuple[str, str, str], float]
"""{(question, scorer, answer's text): score}"""
Grade = Callable[[Sequence[Item], Sequence[str], Known], tuple[list[float], UserError | None]]
"""grade(items, outputs, what is known) -> (scores, the first error); NaN where a scorer could not be called."""


def load(scorers: Mapping[str, str], taken: Mapping[str, object]) -> dict[str, UserScorer]:
    """{name: scorer}; `taken` are the names of built-in scorers.

    Raises:
        UserError: a name is taken, or its function cannot be imported, called or read.
    """
    for name in scorers:
        if name in taken:
            raise UserError(f"benchmark.scorers.{name}: {name} is a built-in scorer: give yours another name")
    return {name: _own(name, path) for name, path in scorers.items()}


def _own(name: str, path: str) -> UserScorer:
    where = f"benchmark.scorers.{name}={path}"
    module, function = _imported(path, where)
    if inspect.isclass(function) or not callable(function):
        raise UserError(f"{where} is no function of (item, output): name one, or an object that can be called")
    if isinstance(function, Judge):
        return UserScorer(name=name, function=function, digest=function.fingerprint, threads=function.threads)
    return UserScorer(name=name, function=function, digest=_source(module, function, path, where))


def _imported(path: str, where: str) -> tuple[ModuleType, Callable[[Item, str], float]]:
    """The module, and the function in it."""
    parent, _, attribute = path.rpartition(".")
    if not parent:
        raise UserError(f"{where} names no module: write my_module.my_function")
    try:
        module = import_module(parent)
    except Exception as error:  # whatever the module does while it is imported
        absent = error.name if isinstance(error, ModuleNotFoundError) else None
        if absent and f"{parent}.".startswith(f"{absent}."):
            raise UserError(f"{where}: no module {absent} in this folder, PYTHONPATH or installed") from None
        raise UserError(f"{where}: {parent} cannot be imported: {type(error).__name__}: {first_line(error)}") from error
    names = [name for name in vars(module) if not name.startswith("_") or name == attribute]
    return module, vars(module)[pick(attribute, names, f"{where}: name in {parent}")]


def _source(module: ModuleType, function: Callable[[Item, str], float], path: str, where: str) -> str:
    """Digest of the files that decide a score: the named module, and that of the function or its class."""
    files: list[Path] = []
    for part in (module, _definition(function)):
        try:
            files.append(Path(inspect.getsourcefile(part) or ""))
        except TypeError:
            raise UserError(f"{where} has no Python source: call it in a function of your own") from None
    texts = [file.read_bytes() for file in dict.fromkeys(files) if file.is_file()]
    return hashlib.sha256(b"\0".join([path.encode(), *texts])).hexdigest()


def _definition(function: Callable[[Item, str], float]) -> Any:
    """The function itself, or the class of an object that can be called."""
    inner = inspect.unwrap(function)
    return inner if inspect.isroutine(inner) else type(inner)


def graded(item: Item, output: str) -> float:
    """Score of an output by the item's own scorer.

    Raises:
        UserError: the scorer fails, or its value is not a number from 0 to 1.
    """
    own = item.user_scorer
    assert own is not None
    try:
        value = own.function(item, output)
    except UserError:
        raise
    except Exception as error:  # the user's code
        raise UserError(
            f"scorer {own.name} ({_place(own)}) fails on item {item.id}: {type(error).__name__}: {first_line(error)}"
        ) from error
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise UserError(f"scorer {own.name} ({_place(own)}) gives {value!r:.60} for item {item.id}, not 0 to 1")
    return float(value)


def _place(own: UserScorer) -> str:
    part = _definition(own.function)
    try:
        return f"{inspect.getsourcefile(part)}:{inspect.getsourcelines(part)[1]}"
    except (OSError, TypeError):
        return "no source"


def grades(items: Sequence[Item], outputs: Sequence[str], known: Known) -> tuple[list[float], UserError | None]:
    """Scores of outputs on items by their own scorers. Equal answers are scored once, several at a time if the scorer
    allows it. After an error no further scorer is called; scores so far are kept."""
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

    threads = min((item.user_scorer.threads for item in asked.values() if item.user_scorer), default=1)
    with ThreadPoolExecutor(threads, thread_name_prefix="souping-score") if threads > 1 else nullcontext() as pool:
        list(pool.map(one, asked) if pool else map(one, asked))
    return [scores.get(key, math.nan) for key in keys], errors[0] if errors else None

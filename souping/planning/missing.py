"""What a run needs that is not on this machine, each with the command that mends it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

from souping.core import UserError
from souping.planning.machine import Machine
from souping.planning.weights import Model

COMMAND = re.compile(
    r"(?:\S+ -m )?pip install (?:\"[^\"]+\"|'[^']+'|[^\s,;]+)"
    r"|python -m souping[\w.]*(?: install)?(?: --full)?"
    r"|hf auth login"
)
"""A command in the words of an error."""
EXTRAS = {
    "HarnessEvaluator": ("lm_eval", "lm-eval"),
    "VllmEngine": ("vllm", "vllm"),
    "MergekitMerge": ("mergekit", "mergekit"),
}
"""Parts that need a package of an extra: (package, extra)."""


@dataclass(frozen=True, kw_only=True)
class Missing:
    """Something that stops the run here; `mends` is a command, or empty where none would do."""

    what: str
    mends: str = ""

    def sentence(self) -> str:
        return f"{self.what}: {self.mends}" if self.mends else self.what

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def from_error(error: UserError) -> Missing:
    """What a part said; the command in its words, where there is one."""
    text = str(error).splitlines()[0]
    found = COMMAND.search(text)
    return Missing(what=text[: found.start()].rstrip(" :;,") if found else text, mends=found.group() if found else "")


def missing(run: Any, models: Sequence[Model], machine: Machine, evaluators: Sequence[Any]) -> list[Missing]:
    """Extras, environments, GPUs, models and a login, each once."""
    parts = [*evaluators, run.merge, run.tracker]
    return once([*_packages(parts), *_gpus(evaluators, machine), *_models(models), *_login(run)])


def check(evaluators: Sequence[Any]) -> None:
    """Refuse, before a model is fetched or loaded, evaluators that cannot start here.

    Raises:
        UserError: a package of an engine or server is absent, or the server that was named does not answer.
    """
    for one in _packages(evaluators):
        raise UserError(f"this run cannot go on here: {one.sentence()}")


def once(found: Iterable[Missing]) -> list[Missing]:
    """Each command once, and what has none once: several parts may lack the same."""
    kept: dict[str, Missing] = {}
    for one in found:
        kept.setdefault(one.mends or one.what, one)
    return list(kept.values())


def _packages(parts: Iterable[Any]) -> Iterator[Missing]:
    """Of a part and what it stands on (engine, server): an absent extra, and what the part itself says it lacks."""
    for part in parts:
        for one in (part, getattr(part, "engine", None), getattr(part, "server", None)):
            if one is None:
                continue
            package, extra = EXTRAS.get(type(one).__name__, ("", ""))
            if package and getattr(one, "command", None) is None and find_spec(package) is None:
                yield Missing(what=f"the package {package}", mends=f'pip install "souping[{extra}]"')
            yield from _own(one)


def _own(part: Any) -> Iterator[Missing]:
    """`needs()` of a part gives (what, command) pairs; `check()` of a server raises, and so does an environment."""
    needs = getattr(part, "needs", None)
    if callable(needs):
        yield from (Missing(what=what, mends=mends) for what, mends in needs())
    try:
        if hasattr(part, "interpreter"):
            part.check()
        if hasattr(type(part), "environment"):
            _ = part.environment
    except UserError as error:
        yield from_error(error)


def _gpus(evaluators: Iterable[Any], machine: Machine) -> Iterator[Missing]:
    for evaluator in evaluators:
        holders = (getattr(evaluator, "engine", None), getattr(evaluator, "server", None))
        ours = [holder for holder in holders if getattr(holder, "url", None) is None]
        ways = max(int(getattr(holder, "tensor_parallel_size", 0)) for holder in [*ours, None])
        if ways > len(machine.gpus):
            yield Missing(what=f"GPUs: vLLM is to use {ways}, nvidia-smi shows {len(machine.gpus)}")
        number = re.fullmatch(r"cuda(?::(\d+))?", str(getattr(evaluator, "device", "")))
        if number and int(number.group(1) or 0) >= len(machine.gpus):
            yield Missing(what=f"a GPU: evaluator.device={evaluator.device}, nvidia-smi shows {len(machine.gpus)}")


def _models(models: Iterable[Model]) -> Iterator[Missing]:
    for model in models:
        if model.trouble:
            yield Missing(what=model.trouble, mends=model.mends)


def _login(run: Any) -> Iterator[Missing]:
    """A run that uploads needs a token; one that only reads public models needs none."""
    if getattr(run, "upload", None) is None:
        return
    from huggingface_hub import get_token

    if get_token() is None:
        how = "hf auth login" if shutil.which("hf") else "pip install huggingface_hub && hf auth login"
        yield Missing(what="a login to the Hub, which upload= needs", mends=how)

"""What a run needs of a machine: packages, GPUs, disks and memory. All sizes are bytes."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from souping.checkpoints.header import ITEM
from souping.checkpoints.layouts import rules_of
from souping.checkpoints.pool import ModelSize, base_of, largest_bytes, weigh
from souping.core.cuda import Gpu, visible_gpus
from souping.core.files import disk_space
from souping.core.protocols import Evaluator, Hosting, ModelHost
from souping.core.system import SHARED_MEMORY, cores, memory_bytes
from souping.core.text import human
from souping.core.types import (
    Candidate,
    JsonObject,
    Missing,
    UserError,
    frozen,
)
from souping.merge.backend import MergeBackend
from souping.report.format import in_words
from souping.runs.settings import RunSettings
from souping.soups.serving import scratch_place

PROGRAM = 1_500_000_000
"""Bytes of Python, torch and transformers themselves, with the buffers of a soup that is mixed block by block."""


@frozen
class Machine:
    """Cores and memory that this process may use, and its GPUs."""

    cores: int
    memory: int
    gpus: tuple[Gpu, ...] = ()


def machine_facts() -> Machine:
    """This machine as it is now."""
    return Machine(cores=cores(), memory=memory_bytes(), gpus=visible_gpus())


@frozen
class Requirement:
    """Bytes that a run needs of a disk, the main memory or a GPU: `sizes` are {what: bytes}, `need` is their sum.

    `have` is the total, of a disk what is free; `fix` says what to do if the need is larger.
    """

    kind: Literal["disk", "memory", "GPU memory"]
    where: str
    sizes: Mapping[str, int]
    have: int
    fix: str

    @property
    def need(self) -> int:
        return sum(self.sizes.values())

    @property
    def parts(self) -> list[str]:
        return [f"{what} {human(size)}" for what, size in self.sizes.items() if size]

    @property
    def fits(self) -> bool:
        return self.need <= self.have

    def as_dict(self) -> JsonObject:
        return {**asdict(self), "need": self.need, "fits": self.fits}

    def lack(self) -> Missing:
        need = f"{human(self.need)} ({', '.join(self.parts)})"
        what = f"{self.where} has {human(self.have)}, the run needs {need}"
        return Missing(what=what, fix=self.fix)


def requirements_of(
    run: RunSettings,
    models: Sequence[ModelSize],
    machine: Machine,
    evaluators: Sequence[Evaluator],
    written: int | None = None,
) -> list[Requirement]:
    """What the run needs of each disk, the memory and the GPUs; nothing if no model's size is known.

    `written` are the bytes of its soup, if its pool is open (default: `soup_bytes`).
    """
    if not any(model.nbytes for model in models):
        return []
    if written is None:
        written = soup_bytes(models, run.merge)
    # A soup is written to a temporary folder for evaluators that take a folder, or chunks that cannot be streamed.
    soup = largest_bytes(models, run.merge.dtype)
    place = scratch_place(soup)
    in_shared_memory = 0
    on_disk = 0
    written_forms = ["folder"]
    if not run.merge.streams or any(model.adapter for model in models):
        written_forms.append("chunks")
    if any(evaluator.hosting.model_form in written_forms for evaluator in evaluators):
        if place == SHARED_MEMORY:
            in_shared_memory = soup
        else:
            on_disk = soup
    in_memory = {
        "program": PROGRAM,
        "one model": max(
            (_in_memory(evaluator, models, machine) for evaluator in evaluators), default=0
        ),
        f"a soup in {SHARED_MEMORY}": in_shared_memory,
    }
    memory = Requirement(
        kind="memory",
        where="this machine's memory",
        sizes=in_memory,
        have=machine.memory,
        fix="use a smaller evaluator.dtype, or a larger machine",
    )
    requirements = [*_disks(run, models, written, place, on_disk), memory]
    for evaluator in evaluators:
        if not _needs_gpu(evaluator.hosting, machine):
            continue
        gpu = _gpu(evaluator, models, machine)
        # Evaluators with the same model and GPUs need them once.
        if gpu not in requirements:
            requirements.append(gpu)
    return requirements


def check_machine(run: RunSettings, evaluators: Sequence[Evaluator]) -> None:
    """Refuse, before a model is fetched or loaded, a run that cannot start or finish on this machine.

    Raises:
        UserError: a package is missing, a named server does not answer, there are too few GPUs, or a disk, the memory
            or a GPU is too small.
    """
    machine = machine_facts()
    if not run.executor.evaluates_here:
        evaluators = ()
    # The first one is the error.
    for lack in [*missing_packages(run, evaluators), *missing_gpus(evaluators, machine)]:
        raise lack.error().at("this run cannot start here")
    models = model_sizes(run)
    # Opening the pool later gives a better error.
    if any(model.trouble for model in models):
        return
    _refuse_lacks(requirements_of(run, models, machine, evaluators))


def check_soup(run: RunSettings, written: int) -> None:
    """Refuse a run whose soup, of which an open pool says the bytes, does not fit on its disk (UserError)."""
    # Downloads are over, and `check_machine` had room for the temporary soup.
    _refuse_lacks(_disks(run, (), written, place=run.out, scratch=0))


def _refuse_lacks(requirements: Iterable[Requirement]) -> None:
    """Refuse what this machine does not have (UserError)."""
    lacks = [requirement.lack() for requirement in requirements if not requirement.fits]
    if lacks:
        # An error has two lines at most.
        sentences = [lack.sentence() for lack in lacks[:2]]
        raise UserError("\n".join(sentences), fix=lacks[0].fix)


def model_sizes(run: RunSettings) -> list[ModelSize]:
    """Sizes of the candidates, then of the base model if the merge has one."""
    pickle = run.merge.allow_pickle
    rules = rules_of(run.merge.name_rules)
    models = [weigh(candidate, pickle, rules) for candidate in run.pool.resolve()]
    base = base_of(models, run.merge.base_model)
    if base is not None:
        models.append(weigh(Candidate(name="base model", path=Path(base)), pickle))
    return models


def soup_bytes(models: Sequence[ModelSize], merge: MergeBackend) -> int:
    """Bytes of a soup on disk, before its pool is open: the largest candidate's in the merge's dtype.

    A soup that stays an adapter has the factors of all of them, in fp32 by default. Whether adapters alone can stay
    one, only an open pool shows.
    """
    adapters = [model for model in models if model.adapter]
    # The other one is the base.
    if merge.adapters == "keep" and adapters and len(models) - len(adapters) <= 1:
        return sum(model.parameters for model in adapters) * ITEM.get(merge.dtype or "float32", 4)
    largest = max(models, key=lambda model: model.nbytes)
    if merge.dtype in ITEM:
        return largest.parameters * ITEM[merge.dtype]
    return largest.nbytes


@frozen
class DiskUse:
    """What is written below a folder; `key` sets the folder."""

    folder: Path
    what: str
    size: int
    key: str


def _disks(
    run: RunSettings, models: Sequence[ModelSize], written: int, place: Path, scratch: int
) -> Iterator[Requirement]:
    """Requirements of each file system that is written to: the soup, downloads, a temporary soup for an evaluator.

    The soup takes `written` bytes, the temporary one `scratch` bytes in `place`.
    """
    from huggingface_hub import constants

    soup = 0 if run.stop_after else written
    downloads = sum(model.download for model in models)
    cache = Path(constants.HF_HUB_CACHE)
    uses = [
        DiskUse(folder=run.out, what="the soup", size=soup, key="out"),
        DiskUse(folder=cache, what="downloads", size=downloads, key="HF_HOME"),
        DiskUse(folder=place, what="a soup for the server", size=scratch, key="TMPDIR"),
    ]
    # {number of a file system: what is written to it}
    by_system: dict[int, list[DiskUse]] = {}
    for use in uses:
        if use.size:
            _, system = disk_space(use.folder)
            by_system.setdefault(system, []).append(use)
    for group in by_system.values():
        free, _ = disk_space(group[0].folder)
        places = " or ".join(f"{use.key}=FOLDER on a larger disk" for use in group)
        yield Requirement(
            kind="disk",
            where=f"the disk for {in_words([use.what for use in group])}",
            sizes={use.what: use.size for use in group},
            have=free,
            fix=f"free some space, or set {places}",
        )


def on_gpu(hosting: Hosting, machine: Machine) -> bool:
    """Whether the loaded model is on a GPU."""
    return hosting.device.startswith("cuda") or (hosting.device == "auto" and bool(machine.gpus))


def _needs_gpu(hosting: Hosting, machine: Machine) -> bool:
    """Whether the loaded model, or the server of it, takes memory of a GPU."""
    if hosting.host is None:
        return on_gpu(hosting, machine)
    # A server of others has its memory already.
    if hosting.host.url is not None:
        return False
    return bool(machine.gpus or hosting.host.gpus)


def _in_memory(evaluator: Evaluator, models: Sequence[ModelSize], machine: Machine) -> int:
    """Bytes of main memory for one evaluator's model; a GPU's model passes through main memory when it is loaded."""
    hosting = evaluator.hosting
    host = hosting.host
    if host is None:
        return largest_bytes(models, hosting.module_settings().dtype)
    # vLLM and servers load shard by shard; without a GPU a server keeps the whole model.
    if host.url is not None or (hosting.model_form != "module" and machine.gpus):
        return 0
    return largest_bytes(models, host.dtype)


def _gpu(evaluator: Evaluator, models: Sequence[ModelSize], machine: Machine) -> Requirement:
    """The memory that an evaluator's model needs on a GPU; a model over several GPUs needs an equal share on each."""
    hosting = evaluator.hosting
    host = hosting.host or ModelHost(dtype=hosting.module_settings().dtype)
    # A host without a number of GPUs uses one.
    gpus = max(1, host.gpus)
    where = "a GPU"
    model = "one model"
    if gpus > 1:
        where = f"each of {gpus} GPUs"
        model = f"one model over {gpus} GPUs"
    # The smallest of the largest `gpus` GPUs; 0 if there are fewer GPUs.
    smallest = 0
    if len(machine.gpus) >= gpus:
        smallest = sorted(gpu.total for gpu in machine.gpus)[-gpus]
    fix = "CUDA finds no GPU on this machine"
    if machine.gpus:
        fix = (
            "more GPUs: engine.tensor_parallel_size / server.tensor_parallel_size, or "
            "evaluator.dtype=bfloat16"
        )
    return Requirement(
        kind="GPU memory",
        where=where,
        # Rounded up.
        sizes={f"{model}, beside its KV cache": -(-largest_bytes(models, host.dtype) // gpus)},
        # Engines and servers leave a part of the memory free.
        have=int(host.fraction * smallest),
        fix=fix,
    )


def missing_packages(run: RunSettings, evaluators: Sequence[Evaluator]) -> list[Missing]:
    """What components lack here: extras and environments."""
    components = [*evaluators, run.merge, run.executor]
    return list(itertools.chain.from_iterable(component.needs() for component in components))


def missing_gpus(evaluators: Iterable[Evaluator], machine: Machine) -> Iterator[Missing]:
    """GPUs that evaluators are set to use and this machine does not have."""
    count = len(machine.gpus)
    for evaluator in evaluators:
        host = evaluator.hosting.host
        device = evaluator.hosting.device
        # A server at a URL has GPUs of its own.
        if host is not None and host.url is None and host.gpus > count:
            yield Missing(what=f"GPUs: vLLM is set to use {host.gpus}, CUDA finds {count}")
        # `cuda` is `cuda:0`.
        number = re.fullmatch(r"cuda(?::(\d+))?", device)
        if number and int(number.group(1) or 0) >= count:
            yield Missing(what=f"a GPU: evaluator.device={device}, CUDA finds {count}")

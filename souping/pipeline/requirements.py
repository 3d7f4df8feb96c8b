"""What a run needs beside what this machine has: disk, memory, GPUs and packages. All sizes are bytes."""

from __future__ import annotations

import csv
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from souping.checkpoints.dtypes import ITEM
from souping.checkpoints.pool import ModelSize, base_of, largest_bytes, weigh
from souping.core.files import expanded
from souping.core.protocols import ModelHost
from souping.core.system import SHARED_MEMORY, cores
from souping.core.types import Candidate, Json, Missing, UserError
from souping.merge.plan import human
from souping.pipeline.models import scratch_place
from souping.report.format import in_words

if TYPE_CHECKING:
    from souping.core.protocols import Evaluator
    from souping.merge import MergeBackend
    from souping.pipeline.settings import MergeSettings, RunSettings

PROGRAM = 1_500_000_000
"""Python, torch and transformers themselves, with the buffers of a soup that is mixed block by block."""
CGROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where Linux says how much memory a container may use, which psutil does not read."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """GPU that this process may use, with its memory in bytes."""

    name: str
    total: int
    free: int


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Cores and memory that this process may use, and its GPUs; `available` memory is free or can be freed."""

    cores: int
    memory: int
    available: int
    gpus: tuple[Gpu, ...] = ()


def machine_facts() -> Machine:
    """This machine as it is now."""
    import psutil

    memory = psutil.virtual_memory()
    limits = [int(text) for path in CGROUPS if path.is_file() and (text := path.read_text().strip()).isdigit()]
    total = min([memory.total, *limits])
    return Machine(cores=cores(), memory=total, available=min(total, memory.available), gpus=gpus())


def gpus() -> tuple[Gpu, ...]:
    """NVIDIA GPUs as the driver lists them, those of CUDA_VISIBLE_DEVICES only if it is set to numbers."""
    if shutil.which("nvidia-smi") is None:
        return ()
    query = ["nvidia-smi", "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return visible(listed_gpus(done.stdout), os.environ.get("CUDA_VISIBLE_DEVICES"))


def listed_gpus(text: str) -> tuple[Gpu, ...]:
    """GPUs from lines `name, total MiB, free MiB`."""
    rows = [row for row in csv.reader(text.splitlines(), skipinitialspace=True) if len(row) == 3]
    return tuple(
        Gpu(name=name, total=int(total) * 2**20, free=int(free) * 2**20)
        for name, total, free in rows
        if total.isdigit() and free.isdigit()
    )


def visible(gpus: tuple[Gpu, ...], setting: str | None) -> tuple[Gpu, ...]:
    """Those that CUDA_VISIBLE_DEVICES leaves; as in CUDA, a number that does not exist ends the list."""
    places = [place.strip() for place in (setting or "").split(",") if place.strip()]
    if setting is None or not all(place.lstrip("-").isdigit() for place in places):
        return gpus
    absent = [n for n, place in enumerate(places) if not 0 <= int(place) < len(gpus)]
    return tuple(gpus[int(place)] for place in places[: absent[0] if absent else None])


def disk_space(path: Path) -> tuple[int, int]:
    """(bytes free where `path` is or will be, number of that file system)."""
    there = expanded(path).absolute()
    there = next(p for p in (there, *there.parents) if p.exists())
    return shutil.disk_usage(there).free, there.stat().st_dev


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """`need` beside `have`, the total (of a disk: what is free), and `free`, what is free just now.

    `parts` says what the need consists of, `fix` what to do if it does not fit.
    """

    kind: Literal["disk", "memory", "GPU memory"]
    where: str
    need: int
    have: int
    free: int
    parts: tuple[str, ...]
    fix: str

    @property
    def fits(self) -> bool:
        return self.need <= self.have

    @property
    def tight(self) -> bool:
        return self.fits and self.need > self.free

    def as_dict(self) -> dict[str, Json]:
        return {**asdict(self), "fits": self.fits}

    def sentence(self) -> str:
        need = f"{human(self.need)} ({', '.join(self.parts)})"
        return f"{self.where} has {human(self.have)}, the run needs {need}: {self.fix}"


def requirements_of(
    run: RunSettings, models: Sequence[ModelSize], machine: Machine, evaluators: Sequence[Evaluator]
) -> list[Requirement]:
    """Everything that can be too small; nothing if no model's size is known."""
    if not any(model.nbytes for model in models):
        return []
    gpus = dict[str, Requirement]()
    for need in (_gpu(run, models, machine, one) for one in evaluators if _uses_gpu(one, machine)):
        gpus.setdefault(f"{need.where} {need.parts}", need)
    return [*_disks(run, models, evaluators), _memory(run, models, machine, evaluators), *gpus.values()]


def check_machine(run: RunSettings, evaluators: Sequence[Evaluator]) -> None:
    """Refuse, before a model is fetched or loaded, a run that cannot start or finish on this machine.

    Raises:
        UserError: a package is missing, a named server does not answer, there are too few GPUs, or a disk, the memory
            or a GPU is too small.
    """
    machine = machine_facts()
    for one in [*_packages(run, evaluators), *_missing_gpus(evaluators, machine)]:
        raise UserError(f"this run cannot start here: {one.sentence()}")
    models = model_sizes(run)
    if any(model.trouble for model in models):
        return  # opening the pool gives the better message
    small = [requirement for requirement in requirements_of(run, models, machine, evaluators) if not requirement.fits]
    if small:
        raise UserError("\n".join(requirement.sentence() for requirement in small[:2]))


def model_sizes(run: RunSettings) -> list[ModelSize]:
    """Sizes of the candidates and, if there is one, of the base model."""
    pickle = run.merge.allow_pickle
    models = [weigh(candidate, pickle) for candidate in run.pool.resolve()]
    base = base_of(models, run.merge.base)
    return models if base is None else [*models, weigh(Candidate(name="base model", path=Path(base)), pickle)]


def soup_bytes(models: Sequence[ModelSize], merge: MergeBackend) -> int:
    """A soup on disk: as large as the largest candidate in the merge's dtype, or an adapter if adapters are kept."""
    kept = [m for m in models if m.adapter] if merge.adapters == "keep" else []
    largest = max(kept or models, key=lambda model: model.nbytes)
    return largest.parameters * ITEM[merge.dtype] if merge.dtype in ITEM else largest.nbytes


def _scratch(run: RunSettings, models: Sequence[ModelSize], evaluators: Sequence[Evaluator]) -> tuple[Path, int]:
    """(place, bytes) of a soup that is written for an engine or server; no bytes if there is none."""
    size = largest_bytes(models, run.merge.dtype)
    return scratch_place(size), size if any(evaluator.model_form != "module" for evaluator in evaluators) else 0


def _disks(run: RunSettings, models: Sequence[ModelSize], evaluators: Sequence[Evaluator]) -> Iterator[Requirement]:
    """Each file system that is written to: the soup, downloads, a soup that is served as a folder."""
    from huggingface_hub import constants

    place, passing = _scratch(run, models, evaluators)
    uses = [
        (run.out, "the soup", 0 if run.stop_after else soup_bytes(models, run.merge), "out"),
        (Path(constants.HF_HUB_CACHE), "downloads", sum(model.download for model in models), "HF_HOME"),
        (place, "a soup for the server", 0 if place == SHARED_MEMORY else passing, "TMPDIR"),
    ]
    by_system: dict[int, list[tuple[Path, str, int, str]]] = {}
    for use in uses:
        if use[2]:
            by_system.setdefault(disk_space(use[0])[1], []).append(use)
    for group in by_system.values():
        free = disk_space(group[0][0])[0]
        yield Requirement(
            kind="disk",
            where=f"the disk for {in_words([what for _, what, _, _ in group])}",
            need=sum(size for _, _, size, _ in group),
            have=free,
            free=free,
            parts=tuple(f"{what} {human(size)}" for _, what, size, _ in group),
            fix="free some space, or set " + " or ".join(f"{key}=FOLDER on a larger disk" for *_, key in group),
        )


def on_gpu(evaluator: Evaluator, machine: Machine) -> bool:
    """Whether the loaded model is on a GPU."""
    return evaluator.device.startswith("cuda") or (evaluator.device == "auto" and bool(machine.gpus))


def _memory(
    run: RunSettings, models: Sequence[ModelSize], machine: Machine, evaluators: Sequence[Evaluator]
) -> Requirement:
    place, passing = _scratch(run, models, evaluators)
    parts = [
        ("program", PROGRAM),
        ("one model", max((_in_memory(one, models, machine) for one in evaluators), default=0)),
        ("resident candidates", sum(model.nbytes for model in models) if run.merge.resident == "cpu" else 0),
        (f"a soup in {SHARED_MEMORY}", passing if place == SHARED_MEMORY else 0),
    ]
    return Requirement(
        kind="memory",
        where="this machine's memory",
        need=sum(size for _, size in parts),
        have=machine.memory,
        free=machine.available,
        parts=tuple(f"{what} {human(size)}" for what, size in parts if size),
        fix="use a smaller evaluator.dtype, merge.resident=none, or a larger machine",
    )


def _in_memory(evaluator: Evaluator, models: Sequence[ModelSize], machine: Machine) -> int:
    """Main memory of one evaluator's model; a model for a GPU passes through it when it is loaded."""
    host = evaluator.host
    if host is not None:  # vLLM and servers load shard by shard; without a GPU a server keeps the whole model
        return largest_bytes(models, host.dtype) if evaluator.model_form == "either" or not machine.gpus else 0
    return largest_bytes(models, evaluator.module_settings().dtype)


def _uses_gpu(evaluator: Evaluator, machine: Machine) -> bool:
    host = evaluator.host
    return on_gpu(evaluator, machine) if host is None else bool(machine.gpus or host.gpus)


def _gpu(run: RunSettings, models: Sequence[ModelSize], machine: Machine, evaluator: Evaluator) -> Requirement:
    """A loaded model on one GPU, or a share of the model on each of several."""
    host = evaluator.host or ModelHost(dtype=evaluator.module_settings().dtype)
    ways, share, size = max(1, host.gpus), host.fraction, largest_bytes(models, host.dtype)
    parts = [(f"one model over {ways} GPUs" if ways > 1 else "one model", -(-size // ways))]
    if evaluator.host is None and run.merge.resident == "device":
        parts.append(("resident candidates", sum(model.nbytes for model in models)))
    used = sorted(machine.gpus, key=lambda gpu: gpu.total)[-ways:] if len(machine.gpus) >= ways else []
    more = "more GPUs: engine.tensor_parallel_size / server.tensor_parallel_size, or evaluator.dtype=bfloat16"
    return Requirement(
        kind="GPU memory",
        where=f"each of {ways} GPUs" if ways > 1 else "a GPU",
        need=sum(bytes_ for _, bytes_ in parts),
        have=int(share * min((gpu.total for gpu in used), default=0)),
        free=int(share * min((gpu.free for gpu in used), default=0)),
        parts=(*(f"{what} {human(bytes_)}" for what, bytes_ in parts), "the KV cache beside it"),
        fix=more if machine.gpus else "nvidia-smi shows no GPU on this machine",
    )


def missing(
    run: MergeSettings, models: Sequence[ModelSize], machine: Machine, evaluators: Sequence[Evaluator]
) -> list[Missing]:
    """Extras, environments, GPUs, models and a login, each once."""
    here = [*_packages(run, evaluators), *run.tracker.needs(), *_missing_gpus(evaluators, machine)]
    absent = [Missing(what=model.trouble, fix=model.fix) for model in models if model.trouble]
    return once([*here, *absent, *_login(run)])


def _packages(run: MergeSettings, evaluators: Sequence[Evaluator]) -> list[Missing]:
    return [one for part in (*evaluators, *run.parts) for one in part.needs()]


def once(needs: Iterable[Missing]) -> list[Missing]:
    """Each command once, and what has none once: several components may lack the same."""
    kept: dict[str, Missing] = {}
    for one in needs:
        kept.setdefault(one.fix or one.what, one)
    return list(kept.values())


def _missing_gpus(evaluators: Iterable[Evaluator], machine: Machine) -> Iterator[Missing]:
    count = len(machine.gpus)
    for evaluator in evaluators:
        host = evaluator.host
        ways = host.gpus if host is not None and host.url is None else 0
        if ways > count:
            yield Missing(what=f"GPUs: vLLM is set to use {ways}, nvidia-smi shows {count}")
        number = re.fullmatch(r"cuda(?::(\d+))?", evaluator.device)
        if number and int(number.group(1) or 0) >= count:
            yield Missing(what=f"a GPU: evaluator.device={evaluator.device}, nvidia-smi shows {count}")


def _login(run: MergeSettings) -> Iterator[Missing]:
    """An upload needs a token; reading public models does not."""
    if run.upload is None:
        return
    from huggingface_hub import get_token

    if get_token() is None:
        how = "hf auth login" if shutil.which("hf") else "pip install huggingface_hub && hf auth login"
        yield Missing(what="a login to the Hub, which upload= needs", fix=how)

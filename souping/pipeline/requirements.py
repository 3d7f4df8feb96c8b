"""Requirements of a run: disk, memory, GPUs and packages, beside what this machine has. Bytes throughout; no torch."""

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
    from souping.core.merge_protocols import MergeBackend
    from souping.core.protocols import Evaluator, Part
    from souping.pipeline.settings import MergeSettings, RunSettings

PROGRAM = 1_500_000_000
"""Python, torch and transformers themselves, with the buffers of a soup that is mixed block by block."""
Kind = Literal["disk", "memory", "GPU memory"]


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """`need` beside `have`, what there is of it in all (a disk: what is free), and `free`, what is free just now.

    `parts` says what the need is made of, `mends` what to do where it does not fit.
    """

    kind: Kind
    where: str
    need: int
    have: int
    free: int
    parts: tuple[str, ...]
    mends: str

    @property
    def fits(self) -> bool:
        return self.need <= self.have

    @property
    def tight(self) -> bool:
        return self.fits and self.need > self.free

    def as_dict(self) -> dict[str, Json]:
        return {**asdict(self), "fits": self.fits}

    def sentence(self) -> str:
        """Why a run cannot go on, and what to do, in one line."""
        need = f"{human(self.need)} ({', '.join(self.parts)})"
        return f"{self.where} has {human(self.have)}, the run needs {need}: {self.mends}"


def requirements_of(
    run: RunSettings, models: Sequence[ModelSize], machine: Machine, evaluators: Sequence[Evaluator]
) -> list[Requirement]:
    """Everything that can be too small; nothing where no model's size is known."""
    if not any(model.nbytes for model in models):
        return []
    return [
        *_disks(run, models, evaluators),
        _memory(run, models, machine, evaluators),
        *_gpu_rooms(run, models, machine, evaluators),
    ]


def check_room(run: RunSettings, evaluators: Sequence[Evaluator]) -> None:
    """Refuse a run that this machine cannot finish, before a model is fetched or loaded.

    Raises:
        UserError: a disk, the memory or a GPU is too small.
    """
    models = model_sizes(run)
    if any(model.trouble for model in models):
        return  # whoever opens the pool next says it better
    lacking = [requirement for requirement in requirements_of(run, models, look(), evaluators) if not requirement.fits]
    if lacking:
        raise UserError("\n".join(requirement.sentence() for requirement in lacking[:2]))


def model_sizes(run: RunSettings) -> list[ModelSize]:
    """Sizes of the candidates and, where there is one, of the base model."""
    pickle = run.merge.allow_pickle
    models = [weigh(candidate, pickle) for candidate in run.pool.resolve()]
    base = base_of(models, run.merge.base)
    return models if base is None else [*models, weigh(Candidate(name="base model", path=Path(base)), pickle)]


def soup_bytes(models: Sequence[ModelSize], merge: MergeBackend) -> int:
    """A soup on disk: as large as the largest candidate, in the merge's dtype; an adapter where adapters are kept."""
    kept = [m for m in models if m.adapter] if merge.adapters == "keep" else []
    largest = max(kept or models, key=lambda model: model.nbytes)
    dtype = merge.dtype
    return largest.parameters * ITEM[dtype] if dtype in ITEM else largest.nbytes


def _disks(run: RunSettings, models: Sequence[ModelSize], evaluators: Sequence[Evaluator]) -> list[Requirement]:
    """Requirement of each file system that is written to: the soup, downloads, a soup that is served as a folder."""
    wishes: list[tuple[Path, str, int, str]] = []
    if not run.stop_after:
        wishes.append((run.out, "the soup", soup_bytes(models, run.merge), "out=FOLDER on a larger disk"))
    fetched = sum(model.download for model in models)
    if fetched:
        wishes.append((_cache(), "downloads", fetched, "HF_HOME=FOLDER on a larger disk"))
    if any(evaluator.wants != "module" for evaluator in evaluators):
        size = largest_bytes(models, run.merge.dtype)
        place = scratch_place(size)
        if place != SHARED_MEMORY:
            wishes.append((place, "a soup for the server", size, "TMPDIR=FOLDER on a larger disk"))
    by_system: dict[int, list[tuple[Path, str, int, str]]] = {}
    for wish in wishes:
        by_system.setdefault(disk_space(wish[0])[1], []).append(wish)
    needs = []
    for group in by_system.values():
        free = disk_space(group[0][0])[0]
        parts = tuple(f"{what} {human(size)}" for _, what, size, _ in group)
        mends = "make room, or " + " or ".join(mends for *_, mends in group)
        need = sum(size for _, _, size, _ in group)
        needs.append(
            Requirement(
                kind="disk",
                where=f"the disk for {in_words([what for _, what, _, _ in group])}",
                need=need,
                have=free,
                free=free,
                parts=parts,
                mends=mends,
            )
        )
    return needs


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def on_gpu(evaluator: Evaluator, machine: Machine) -> bool:
    """Whether a live module stands on a GPU."""
    device = evaluator.device
    return device.startswith("cuda") or (device == "auto" and bool(machine.gpus))


def _memory(
    run: RunSettings, models: Sequence[ModelSize], machine: Machine, evaluators: Sequence[Evaluator]
) -> Requirement:
    parts = [("program", PROGRAM)]
    held = max((_held(evaluator, models, machine) for evaluator in evaluators), default=0)
    if held:
        parts.append(("one model", held))
    if run.merge.resident == "cpu":
        parts.append(("resident candidates", sum(model.nbytes for model in models)))
    if any(evaluator.wants != "module" for evaluator in evaluators):
        size = largest_bytes(models, run.merge.dtype)
        if scratch_place(size) == SHARED_MEMORY:
            parts.append((f"a soup in {SHARED_MEMORY}", size))
    return Requirement(
        kind="memory",
        where="this machine's memory",
        need=sum(size for _, size in parts),
        have=machine.memory,
        free=machine.available,
        parts=tuple(f"{what} {human(size)}" for what, size in parts),
        mends="use a smaller evaluator.dtype, merge.resident=none, or a larger machine",
    )


def _held(evaluator: Evaluator, models: Sequence[ModelSize], machine: Machine) -> int:
    """Main memory that one evaluator's model takes; a model for a GPU passes through it when it is loaded."""
    host = evaluator.host
    if host is not None:  # vLLM and servers load shard by shard; without a GPU a server keeps it all
        return largest_bytes(models, host.dtype) if evaluator.wants == "either" or not machine.gpus else 0
    return largest_bytes(models, evaluator.module_settings().dtype)


def _gpu_rooms(
    run: RunSettings, models: Sequence[ModelSize], machine: Machine, evaluators: Sequence[Evaluator]
) -> list[Requirement]:
    """Each kind of use of a GPU once: a live module on one, or a share of the model on each of several."""
    needs: dict[str, Requirement] = {}
    for evaluator in evaluators:
        host = evaluator.host
        if host is None and not on_gpu(evaluator, machine):
            continue
        if host is not None and not machine.gpus and not host.gpus:
            continue  # transformers' server runs on the CPU too
        need = _gpu(run, models, machine, evaluator)
        needs.setdefault(f"{need.where} {need.parts}", need)
    return list(needs.values())


def _gpu(run: RunSettings, models: Sequence[ModelSize], machine: Machine, evaluator: Evaluator) -> Requirement:
    host = evaluator.host or ModelHost(dtype=evaluator.module_settings().dtype)
    ways, share, size = max(1, host.gpus), host.fraction, largest_bytes(models, host.dtype)
    parts = [(f"one model over {ways} GPUs" if ways > 1 else "one model", -(-size // ways))]
    if evaluator.host is None and run.merge.resident == "device":
        parts.append(("resident candidates", sum(model.nbytes for model in models)))
    used = sorted(machine.gpus, key=lambda gpu: gpu.total)[-ways:] if len(machine.gpus) >= ways else []
    mends = "more GPUs: engine.tensor_parallel_size / server.tensor_parallel_size, or evaluator.dtype=bfloat16"
    return Requirement(
        kind="GPU memory",
        where=f"each of {ways} GPUs" if ways > 1 else "a GPU",
        need=sum(bytes_ for _, bytes_ in parts),
        have=int(share * min((gpu.total for gpu in used), default=0)),
        free=int(share * min((gpu.free for gpu in used), default=0)),
        parts=(*(f"{what} {human(bytes_)}" for what, bytes_ in parts), "the KV cache beside it"),
        mends=mends if machine.gpus else "this machine has no GPU that nvidia-smi shows",
    )


CGROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Where Linux says how much memory a container may use."""


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """GPU that this process may use, with its memory in bytes."""

    name: str
    total: int
    free: int


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Memory in bytes: what there is for this process, and what of it is free or can be freed."""

    cores: int
    memory: int
    available: int
    gpus: tuple[Gpu, ...] = ()


def look() -> Machine:
    """This machine as it is now."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [int(text) for path in CGROUPS if (text := _text(path)).isdigit()]
    memory = min([total, *limits])
    return Machine(cores=cores(), memory=memory, available=min(memory, _available(total)), gpus=gpus())


def _available(total: int) -> int:
    """Linux' own estimate of what can be had without swapping; elsewhere all of it."""
    for line in _text(Path("/proc/meminfo")).splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return total


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def gpus() -> tuple[Gpu, ...]:
    """NVIDIA's GPUs as its driver lists them, those of CUDA_VISIBLE_DEVICES only where it is set to numbers."""
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
    """Those that CUDA_VISIBLE_DEVICES leaves, where it holds numbers."""
    if setting is None:
        return gpus
    parts = [part.strip() for part in setting.split(",") if part.strip()]
    if not all(part.lstrip("-").isdigit() for part in parts):
        return gpus
    chosen: list[Gpu] = []
    for part in parts:
        if not 0 <= int(part) < len(gpus):
            break  # as CUDA: what follows a number that is not there is not seen
        chosen.append(gpus[int(part)])
    return tuple(chosen)


def disk_space(path: Path) -> tuple[int, int]:
    """(bytes free where `path` is or will be, the number of that file system)."""
    there = expanded(path).absolute()
    there = next(p for p in (there, *there.parents) if p.exists())
    return shutil.disk_usage(there).free, there.stat().st_dev


def missing(
    run: MergeSettings, models: Sequence[ModelSize], machine: Machine, evaluators: Sequence[Evaluator]
) -> list[Missing]:
    """Extras, environments, GPUs, models and a login, each once."""
    here = [*_packages(run, evaluators), *run.tracker.needs(), *_missing_gpus(evaluators, machine)]
    return once([*here, *_models(models), *_login(run)])


def check_installed(run: MergeSettings, evaluators: Sequence[Evaluator]) -> None:
    """Refuse, before a model is fetched or loaded, a run whose parts cannot start here.

    Raises:
        UserError: a package of an evaluator, engine, server or merge backend is absent, the server that was named does
            not answer, or there are fewer GPUs than asked for.
    """
    for one in [*_packages(run, evaluators), *_missing_gpus(evaluators, look())]:
        raise UserError(f"this run cannot go on here: {one.sentence()}")


def _packages(run: MergeSettings, evaluators: Sequence[Evaluator]) -> list[Missing]:
    parts: list[Part] = [*evaluators, *run.parts]
    return [one for part in parts for one in part.needs()]


def once(needs: Iterable[Missing]) -> list[Missing]:
    """Each command once, and what has none once: several parts may lack the same."""
    kept: dict[str, Missing] = {}
    for one in needs:
        kept.setdefault(one.mends or one.what, one)
    return list(kept.values())


def _missing_gpus(evaluators: Iterable[Evaluator], machine: Machine) -> Iterator[Missing]:
    for evaluator in evaluators:
        host = evaluator.host
        ways = host.gpus if host is not None and host.url is None else 0
        if ways > len(machine.gpus):
            yield Missing(what=f"GPUs: vLLM is to use {ways}, nvidia-smi shows {len(machine.gpus)}")
        number = re.fullmatch(r"cuda(?::(\d+))?", evaluator.device)
        if number and int(number.group(1) or 0) >= len(machine.gpus):
            yield Missing(what=f"a GPU: evaluator.device={evaluator.device}, nvidia-smi shows {len(machine.gpus)}")


def _models(models: Iterable[ModelSize]) -> Iterator[Missing]:
    for model in models:
        if model.trouble:
            yield Missing(what=model.trouble, mends=model.mends)


def _login(run: MergeSettings) -> Iterator[Missing]:
    """A run that uploads needs a token; one that only reads public models needs none."""
    if run.upload is None:
        return
    from huggingface_hub import get_token

    if get_token() is None:
        how = "hf auth login" if shutil.which("hf") else "pip install huggingface_hub && hf auth login"
        yield Missing(what="a login to the Hub, which upload= needs", mends=how)

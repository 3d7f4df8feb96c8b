"""Checkpoints of a training run: where trainers put them, which are complete, and at which learning rate they stand."""

from __future__ import annotations

import csv
import filecmp
import hashlib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from souping.checkpoints.folder import weight_map
from souping.core.fields import text_of
from souping.core.files import near_folder
from souping.core.text import first_line, listed, read_json
from souping.core.types import Json, UserError, entries, number

LAYOUTS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "Trainer": (r"checkpoint[-_](\d+)", ("pytorch_model_fsdp_0", "")),
    "torchtitan": (r"step-(\d+)", ("",)),
    "OLMo-core": (r"step(\d+)", ("model_and_optim", "")),
    "Megatron": (r"iter_(\d+)", ("",)),
    "verl": (r"global_step_(\d+)", ("actor/huggingface", "actor")),
    "NeMo RL": (r"step_(\d+)", ("policy/weights", "policy/weights/model")),
}
"""{trainer: (name of a checkpoint's folder, folders inside it that may hold the weights)}. TRL, axolotl and
LLaMA-Factory save as transformers' Trainer does."""
MODEL = "huggingface"
"""Folder inside a checkpoint that is a whole Hugging Face model if it has weights."""
STATE = "trainer_state.json"
MARKS = (STATE, "metadata.json")
"""Files that trainers write last. If one checkpoint of a run has such a file, those without it are incomplete."""
WEIGHTS = re.compile(r".*\.(safetensors|distcp)|\.metadata|(pytorch|adapter)_model.*\.bin|model_world_size_.*\.pt")
RANKS = re.compile(r"model_world_size_(\d+)_rank_\d+\.pt")
AVERAGE = re.compile(r"(.*[-_])?(ema|swa|averaged?)([-_].*)?", re.IGNORECASE)
"""Folder beside the checkpoints in which a trainer keeps an average of its own."""
SPOTS, SPOT = 64, 4096
"""Places of a file, and bytes at each, that tell most different weights apart."""
FALLEN = 0.5
"""Share of the first learning rate below which the rate has fallen."""
FELL = "averages of decayed checkpoints seldom gain"


@dataclass(frozen=True, kw_only=True)
class Member:
    """Checkpoint of a run: the folder to open, that of its weights, and what the trainer logged up to it."""

    name: str
    folder: Path
    weights: Path
    step: int
    rate: float | None = None
    tokens: float | None = None


@dataclass(frozen=True, kw_only=True)
class TrainingRun:
    """Complete checkpoints of a run, oldest first, and what was left out: {name: why}.

    `gone` are steps at which checkpoints were saved that are not there any more. `root` is the member whose weights the
    run's own folder holds, empty if they are no member's; `best` is the one that the trainer calls the best, `average`
    the folder of its own average.
    """

    folder: Path
    trainer: str
    members: tuple[Member, ...]
    left_out: Mapping[str, str]
    gone: tuple[int, ...] = ()
    root: str | None = None
    best: Member | None = None
    average: Path | None = None

    def kept(self, steps: Sequence[int] | None, until: int | None, every: int, last: int | None) -> TrainingRun:
        """The run with some of its members: those at `steps`, up to step `until`, every `every`-th counted back from
        the newest, of these the `last`.

        Raises:
            UserError: there is no checkpoint at one of the steps.
        """
        there = [member.step for member in self.members]
        for step in steps or ():
            if step not in there:
                known = listed(map(str, there))
                raise UserError(f"pool.steps: {self.folder} has no complete checkpoint {step}: {known}")
        members = [one for one in self.members if (not steps or one.step in steps) and one.step <= (until or one.step)]
        chosen = members[::-1][::every][:last][::-1]
        return replace(self, members=tuple(chosen))


def find_run(path: Path, rates: Path | None = None) -> TrainingRun:
    """The run in a folder, with the learning rates of its trainer_state.json or of the file `rates`.

    Raises:
        UserError: it is no folder, or holds no checkpoint of a known layout.
    """
    if not path.is_dir():
        raise UserError(f"pool.path={path} is not a folder{near_folder(path)}")
    trainer, found, left_out = _checkpoints(path)
    state, members = _state(found), list[Member]()
    log = entries(state, "log_history") if rates is None else read_rates(rates)
    for name, (step, folder, weights) in found.items():
        if why := _incomplete(folder, weights, found):
            left_out[name] = why
        elif weights is not None:
            rate, tokens = (_logged(log, key, step) for key in ("learning_rate", "num_input_tokens_seen"))
            place = weights if weights.name == MODEL else folder
            members.append(Member(name=name, folder=place, weights=weights, step=step, rate=rate, tokens=tokens))
    copies = _copies(members)
    left_out |= {one: f"the same weights as {other}" for one, other in copies.items()}
    kept = [member for member in members if member.name not in copies]
    best = Path(str(state.get("best_model_checkpoint") or "")).name
    return TrainingRun(
        folder=path,
        trainer=trainer,
        members=tuple(kept),
        left_out=left_out,
        gone=_gone([step for step, _, _ in found.values()], number(state.get("save_steps"))),
        root=_root(path, kept),
        best=next((member for member in kept if member.name == copies.get(best, best)), None),
        average=next((one for one in _folders(path) if AVERAGE.fullmatch(one.name) and _weights_in(one, ("",))), None),
    )


Found = dict[str, tuple[int, Path, Path | None]]
"""{name: (step, folder of the checkpoint, folder of its weights)}, oldest first"""


def _folders(path: Path) -> list[Path]:
    return sorted(one for one in path.iterdir() if one.is_dir())


def _checkpoints(path: Path) -> tuple[str, Found, dict[str, str]]:
    """(trainer, checkpoints, what is left out) of the layout that most folders follow."""
    layouts: dict[str, Found] = {}
    left_out: dict[str, str] = {}
    for folder in _folders(path):
        for trainer, (pattern, inner) in LAYOUTS.items():
            if match := re.fullmatch(pattern, folder.name):
                layouts.setdefault(trainer, {})[folder.name] = int(match[1]), folder, _weights_in(folder, inner)
            elif re.search(pattern, folder.name) and re.search("tmp|part", folder.name):
                left_out[folder.name] = "incomplete: its name is a temporary one"
    if not layouts:
        looked_for = ", ".join(pattern.replace("[-_]", "-").replace(r"(\d+)", "N") for pattern, _ in LAYOUTS.values())
        raise UserError(f"pool.path={path} holds no checkpoints: looked for {looked_for}")
    trainer = max(layouts, key=lambda name: len(layouts[name]))
    for other in layouts.keys() - {trainer}:
        left_out |= dict.fromkeys(layouts[other], f"most checkpoints here are {trainer}'s")
    return trainer, dict(sorted(layouts[trainer].items(), key=lambda one: one[1][0])), left_out


def _weights_in(folder: Path, inner: Sequence[str]) -> Path | None:
    """The first of these folders that holds weights."""
    places = [folder / name if name else folder for name in inner]
    return next((one for one in places if one.is_dir() and _weight_files(one)), None)


def _weight_files(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir() if WEIGHTS.fullmatch(one.name))


def _incomplete(folder: Path, weights: Path | None, siblings: Found) -> str:
    """Why a checkpoint is not whole; empty if it is."""
    if weights is None:
        return "no weights in it"
    names = {one.name for one in weights.iterdir()}
    if any(name.endswith(".distcp") for name in names) and ".metadata" not in names:
        return "incomplete: no .metadata"
    for index in (one for one in names if one.endswith(".index.json")):
        try:
            lost = sorted(set(weight_map(weights / index).values()) - names)
        except UserError:
            lost = ["a part of the index"]
        if lost:
            return f"incomplete: {lost[0]} is missing"
    ranks = [match for name in names if (match := RANKS.fullmatch(name))]
    if ranks and len(ranks) < int(ranks[0][1]):
        return f"incomplete: {len(ranks)} of {ranks[0][1]} rank files"
    for mark in MARKS:
        if not (folder / mark).exists() and any((other / mark).exists() for _, other, _ in siblings.values()):
            return f"incomplete: no {mark}"
    return ""


def _copies(members: Sequence[Member]) -> dict[str, str]:
    """{checkpoint: a later one that holds the same weights}"""
    later: dict[str, list[Member]] = {}
    copies: dict[str, str] = {}
    for member in reversed(members):
        seen = later.setdefault(_sketch(member.weights), [])
        same = next((other for other in seen if _same_weights(member.weights, other.weights)), None)
        if same is None:
            seen.append(member)
        else:
            copies[member.name] = same.name
    return copies


def _sketch(folder: Path) -> str:
    """Digest of the sizes of the weights and of some of their bytes: different ones hardly ever share it."""
    made = hashlib.sha256()
    for name in _weight_files(folder):
        size = (folder / name).stat().st_size
        made.update(f"{name} {size} ".encode())
        with (folder / name).open("rb") as file:
            for spot in range(SPOTS):
                file.seek(size * spot // SPOTS)
                made.update(file.read(SPOT))
    return made.hexdigest()


def _same_weights(one: Path, other: Path) -> bool:
    names = _weight_files(one)
    return names == _weight_files(other) and not any(filecmp.cmpfiles(one, other, names, shallow=False)[1:])


def _root(path: Path, members: Sequence[Member]) -> str | None:
    """The member whose weights stand in the run's own folder; empty if they are none's, None without weights."""
    if not _weight_files(path):
        return None
    sketch = _sketch(path)
    same = (one.name for one in members if _sketch(one.weights) == sketch and _same_weights(one.weights, path))
    return next(same, "")


def _gone(steps: Sequence[int], interval: float | None) -> tuple[int, ...]:
    """Steps of the saving interval without a checkpoint: the trainer's interval if the checkpoints keep to it, else the
    smallest distance of two. The newest checkpoint may be saved at the end of training, off the interval."""
    ordered = sorted(set(steps))
    keeps = interval and interval >= 1 and all(step % interval == 0 for step in ordered[:-1])
    distance = int(interval or 0) if keeps else min((b - a for a, b in pairwise(ordered)), default=0)
    if not distance or any(step % distance for step in ordered[:-1]):
        return ()
    return tuple(step for step in range(distance, ordered[-1], distance) if step not in ordered)


# ------------------------------------------------------------ learning rates


def _state(found: Found) -> Mapping[str, Json]:
    """The trainer_state.json of the newest checkpoint that has a readable one."""
    for _, folder, _ in reversed(found.values()):
        with suppress(ValueError, UserError, FileNotFoundError):
            state = read_json(text_of(folder / STATE))
            return state if isinstance(state, Mapping) else {}
    return {}


def read_rates(path: Path) -> list[Mapping[str, Json]]:
    """Learning rates by step as a trainer logs them: a CSV with the columns step and lr, or JSON: a list of such
    objects, or {step: rate}.

    Raises:
        UserError: it is neither.
    """
    text = text_of(path)
    try:
        table = read_json(text) if path.suffix == ".json" else list(csv.DictReader(text.splitlines()))
        rows = [{"step": step, "lr": lr} for step, lr in table.items()] if isinstance(table, dict) else table
        return [{"step": int(row["step"]), "learning_rate": float(row["lr"])} for row in rows]
    except (ValueError, TypeError, LookupError) as error:
        form = "a CSV with the columns step and lr, or JSON {step: rate}"
        raise UserError(f"pool.lr={path} must be {form}: {first_line(error)}") from error


def _logged(log: Sequence[Mapping[str, Json]], key: str, step: int) -> float | None:
    """What was logged last up to a step."""
    known = [(number(entry.get("step")), number(entry.get(key))) for entry in log]
    past = [(at, value) for at, value in known if at is not None and value is not None and at <= step]
    return max(past)[1] if past else None


def rate_sentence(members: Sequence[Member]) -> str:
    """How the learning rate changed over the members, and what that means for their average."""
    rates = [member.rate for member in members if member.rate is not None]
    if len(rates) < len(members) or not rates:
        return "The learning rates are not known: give them with pool.lr=FILE (step,lr)."
    first, last = rates[0], rates[-1]
    if last < FALLEN * first:
        these = f"over these {len(members)}"
        return f"The rate fell from {first:g} to {last:g} {these}: {FELL}."
    return f"The learning rate is {f'{first:g}' if first == last else f'{first:g} to {last:g}'}."


def run_sentences(run: TrainingRun) -> list[str]:
    """What was left out of a run's folder, and what stands there besides."""
    lines = [f"{name}: left out, {why}" for name, why in sorted(run.left_out.items())]
    if run.gone:
        shown = f"{run.gone[0]} to {run.gone[-1]}" if len(run.gone) > 1 else str(run.gone[0])
        lines.append(f"{len(run.gone)} checkpoints at steps {shown} are gone (save_total_limit?)")
    if run.root == "":
        lines.append("the folder itself holds weights of no checkpoint: they are not used")
    elif run.root is not None and run.members and run.root != run.members[-1].name:
        lines.append(f"the folder itself holds {run.root}, not the last checkpoint")
    return [f"{run.folder}: {line}" for line in lines]

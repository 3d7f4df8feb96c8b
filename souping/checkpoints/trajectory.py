"""Checkpoints of a training run: where trainers put them, which are complete, and at which learning rate they stand."""

from __future__ import annotations

import csv
import filecmp
import itertools
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from souping.checkpoints.folder import weight_map
from souping.core.fields import text_of
from souping.core.files import near_folder
from souping.core.json_fields import entries, number
from souping.core.parsing import read_json
from souping.core.text import first_line, listed
from souping.core.types import JsonObject, UserError, frozen

TRAINER_FOLDERS = {
    "Trainer": r"checkpoint[-_](\d+)", "torchtitan": r"step-(\d+)", "OLMo-core": r"step(\d+)",
    "Megatron": r"iter_(\d+)", "verl": r"global_step_(\d+)", "NeMo RL": r"step_(\d+)",
}  # fmt: skip
"""{trainer: name of a checkpoint's folder}. TRL, axolotl and LLaMA-Factory save as transformers' Trainer does."""
INSIDE = (
    "pytorch_model_fsdp_0", "model_and_optim", "actor/huggingface", "actor", "policy/weights", "policy/weights/model",
)  # fmt: skip
"""Folders inside a checkpoint that may hold the weights; else it does itself."""
MODEL = "huggingface"
"""Folder inside a checkpoint that is a whole Hugging Face model if it has weights."""
STATE = "trainer_state.json"
MARKS = (STATE, "metadata.json")
"""Files that trainers write last. If one checkpoint of a run has such a file, those without it are incomplete."""
WEIGHT_FILE = re.compile(
    r".*\.(safetensors|distcp)|\.metadata|(pytorch|adapter)_model.*\.bin|model_world_size_.*\.pt"
)
RANKS = re.compile(r"model_world_size_(\d+)_rank_\d+\.pt")
AVERAGE_FOLDER = re.compile(r"(.*[-_])?(ema|swa|averaged?)([-_].*)?", re.IGNORECASE)
"""Folder beside the checkpoints in which a trainer keeps an average of its own."""
FALLEN = 0.5
"""Share of the first learning rate below which the rate has fallen."""
FELL = "averages of decayed checkpoints seldom gain"


@frozen
class Member:
    """Checkpoint of a run: its folder, that of its weights, and what the trainer logged up to it."""

    name: str
    folder: Path
    weights: Path
    step: int
    rate: float | None = None
    tokens: float | None = None

    @property
    def model(self) -> Path:
        """The folder to open."""
        return self.weights if self.weights.name == MODEL else self.folder

    def same_weights(self, folder: Path) -> bool:
        own = self.weights
        files = weight_files(self.weights)
        return files == weight_files(folder) and all(
            filecmp.cmp(own / one, folder / one, False) for one in files
        )


@frozen
class TrainingRun:
    """Complete checkpoints of a run, oldest first.

    `notes` say what was left out. `best` is the checkpoint that the trainer calls the best, `average` the folder of its
    own average.
    """

    folder: Path
    trainer: str
    members: tuple[Member, ...]
    notes: tuple[str, ...] = ()
    best: Member | None = None
    average: Path | None = None

    def chosen(
        self, steps: Sequence[int] | None, until: int | None, every: int, last: int | None
    ) -> TrainingRun:
        """The run with some of its members: those at `steps`, up to step `until`, every `every`-th counted back from
        the newest, of these the `last`.

        Raises:
            UserError: there is no checkpoint at one of the steps.
        """
        present = [member.step for member in self.members]
        if missing := set(steps or ()) - set(present):
            shown = listed(map(str, present))
            raise UserError(
                f"pool.steps: {self.folder} has no complete checkpoint {min(missing)}: {shown}"
            )
        members = [
            one
            for one in self.members
            if (not steps or one.step in steps) and one.step <= (until or one.step)
        ]
        return replace(self, members=tuple(members[::-1][::every][:last][::-1]))


def find_run(path: Path, rates: Path | None = None) -> TrainingRun:
    """The run in a folder, with the learning rates of its trainer_state.json or of the file `rates`.

    Raises:
        UserError: it is not a folder, or holds no checkpoint of a known layout.
    """
    if not path.is_dir():
        raise UserError(f"pool.path={path} is not a folder{near_folder(path)}")
    trainer, found, left_out = _checkpoints(path)
    left_out |= {one.name: why for one in found if (why := _incomplete(one, found))}
    members = list[Member]()
    copies = dict[str, str]()
    for member in [one for one in found[::-1] if one.name not in left_out]:
        copy = next((other for other in members if member.same_weights(other.weights)), None)
        if copy is None:
            members.append(member)
        else:
            copies[member.name] = copy.name
    left_out |= {one: f"the same weights as {other}" for one, other in copies.items()}
    notes = [f"{name}: left out, {why}" for name, why in sorted(left_out.items())]
    state = _state(found)
    log = entries(state, "log_history") if rates is None else read_rates(rates)
    notes += _gone([one.step for one in found], number(state.get("save_steps"))) + _root(
        path, members
    )
    best = Path(str(state.get("best_model_checkpoint") or "")).name
    average = (
        one for one in _folders(path) if AVERAGE_FOLDER.fullmatch(one.name) and weight_files(one)
    )
    return TrainingRun(
        folder=path,
        trainer=trainer,
        members=tuple(_logged(one, log) for one in members[::-1]),
        notes=tuple(f"{path}: {note}" for note in notes),
        best=next((one for one in members if one.name == copies.get(best, best)), None),
        average=next(average, None),
    )


def _folders(path: Path) -> list[Path]:
    return sorted(one for one in path.iterdir() if one.is_dir())


def weight_files(folder: Path) -> list[str]:
    return (
        sorted(one.name for one in folder.iterdir() if WEIGHT_FILE.fullmatch(one.name))
        if folder.is_dir()
        else []
    )


def _checkpoints(path: Path) -> tuple[str, list[Member], dict[str, str]]:
    """(trainer, checkpoints by step, {what is left out: why}) of the layout that most folders follow."""
    layouts, left_out = dict[str, list[Member]](), dict[str, str]()
    for folder in _folders(path):
        for trainer, pattern in TRAINER_FOLDERS.items():
            if match := re.fullmatch(pattern, folder.name):
                weights = next(
                    (folder / one for one in INSIDE if weight_files(folder / one)), folder
                )
                member = Member(
                    name=folder.name, folder=folder, weights=weights, step=int(match[1])
                )
                layouts.setdefault(trainer, []).append(member)
            elif re.search(pattern, folder.name) and re.search("tmp|part", folder.name):
                left_out[folder.name] = "incomplete: its name is a temporary one"
    if not layouts:
        looked_for = ", ".join(
            pattern.replace("[-_]", "-").replace(r"(\d+)", "N")
            for pattern in TRAINER_FOLDERS.values()
        )
        raise UserError(f"pool.path={path} holds no checkpoints: looked for {looked_for}")
    trainer = max(layouts, key=lambda name: len(layouts[name]))
    for other in layouts.keys() - {trainer}:
        left_out |= dict.fromkeys(
            (one.name for one in layouts[other]), f"most checkpoints here are {trainer}'s"
        )
    return trainer, sorted(layouts[trainer], key=lambda one: one.step), left_out


def _incomplete(member: Member, siblings: Sequence[Member]) -> str:
    """Why a checkpoint is not whole; empty if it is."""
    if not weight_files(member.weights):
        return "no weights in it"
    names = {one.name for one in member.weights.iterdir()}
    if any(name.endswith(".distcp") for name in names) and ".metadata" not in names:
        return "incomplete: no .metadata"
    for index in (one for one in names if one.endswith(".index.json")):
        try:
            lost = sorted(set(weight_map(member.weights / index).values()) - names)
        except UserError:
            lost = ["a part of the index"]
        if lost:
            return f"incomplete: {lost[0]} is missing"
    ranks = [match for name in names if (match := RANKS.fullmatch(name))]
    if ranks and len(ranks) < int(ranks[0][1]):
        return f"incomplete: {len(ranks)} of {ranks[0][1]} rank files"
    for mark in MARKS:
        if not (member.folder / mark).exists() and any(
            (other.folder / mark).exists() for other in siblings
        ):
            return f"incomplete: no {mark}"
    return ""


def _root(path: Path, members: Sequence[Member]) -> list[str]:
    """A note if the weights in the run's own folder are not those of the last checkpoint; the newest comes first."""
    if not weight_files(path) or not members:
        return []
    name = next((member.name for member in members if member.same_weights(path)), None)
    if name is None:
        return ["the folder itself holds weights of no checkpoint: they are not used"]
    return [f"the folder itself holds {name}, not the last checkpoint"] * (name != members[0].name)


def _gone(steps: Sequence[int], interval: float | None) -> list[str]:
    """A note on steps of the saving interval without a checkpoint. The interval is the trainer's, else the smallest
    distance of two; the newest checkpoint may be saved at the end of training, off the interval."""
    distance = int(interval or 0) or min((b - a for a, b in itertools.pairwise(steps)), default=0)
    if distance < 1 or any(step % distance for step in steps[:-1]):
        return []
    # Steps are numbers in names, which may be huge: missing ones are counted, and only the first are listed.
    present = {step for step in steps if 0 < step < steps[-1]}
    missing = (steps[-1] - 1) // distance - len(present)
    if missing < 1:
        return []
    expected = itertools.count(distance, distance)
    first = itertools.islice((step for step in expected if step not in present), min(missing, 10))
    more = f" and {missing - 10} more" if missing > 10 else ""
    return [
        f"no checkpoint at steps {listed(map(str, first))}{more} (deleted by save_total_limit?)"
    ]


# ------------------------------------------------------------ learning rates


def _state(found: Sequence[Member]) -> JsonObject:
    """The trainer_state.json of the newest checkpoint that has a readable one."""
    for member in reversed(found):
        with suppress(ValueError, UserError, FileNotFoundError):
            state = read_json(text_of(member.folder / STATE))
            return state if isinstance(state, Mapping) else {}
    return {}


def read_rates(path: Path) -> list[JsonObject]:
    """Learning rates as a trainer logs them, from a CSV with the columns step and lr, or from JSON {step: rate}.

    Raises:
        UserError: it is neither.
    """
    text = text_of(path)
    try:
        rows = csv.DictReader(text.splitlines())
        pairs = (
            read_json(text).items()
            if path.suffix == ".json"
            else [(row["step"], row["lr"]) for row in rows]
        )
        return [{"step": int(step), "learning_rate": float(rate)} for step, rate in pairs]
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        form = "a CSV with the columns step and lr, or JSON {step: rate}"
        raise UserError(f"pool.lr={path} must be {form}: {first_line(error)}") from error


def _logged(member: Member, log: Sequence[JsonObject]) -> Member:
    """The checkpoint with what was logged last up to its step."""

    def value(key: str) -> float | None:
        pairs = [(number(entry.get("step")), number(entry.get(key))) for entry in log]
        past = [
            (at, value)
            for at, value in pairs
            if at is not None and value is not None and at <= member.step
        ]
        return max(past)[1] if past else None

    return replace(member, rate=value("learning_rate"), tokens=value("num_input_tokens_seen"))


def rate_sentence(members: Sequence[Member]) -> str:
    """How the learning rate changed over the members, and what that means for their average."""
    rates = [member.rate for member in members if member.rate is not None]
    if len(rates) < len(members) or not rates:
        return "The learning rates are not known: give them with pool.lr=FILE (step,lr)."
    first = rates[0]
    last = rates[-1]
    if last < FALLEN * first:
        these = f"over these {len(members)}"
        return f"The rate fell from {first:g} to {last:g} {these}: {FELL}."
    return f"The learning rate is {f'{first:g}' if first == last else f'{first:g} to {last:g}'}."

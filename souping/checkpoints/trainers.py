"""Trainers: a new one is a record in `TRAINERS`, with the names of its checkpoints' folders and the places of weights.

If it has its own names or shapes of tensors, they are rules in a file in `rules`, which `layouts` reads. Installed
packages bring further trainers (`layouts.installed_trainers`).
"""

from __future__ import annotations

import re
from itertools import chain
from pathlib import Path

from souping.core.fields import component
from souping.core.installed import NamedPart
from souping.core.types import Names

TRAINER_STATE = "trainer_state.json"
RULES = Path(__file__).with_name("rules")
HUGGING_FACE = "hugging_face"
WEIGHT_FILE = re.compile(
    r".*\.(safetensors|distcp)|\.metadata|(pytorch|adapter)_model.*\.bin|model_world_size_.*\.pt"
)


@component
class Trainer(NamedPart):
    """Layout of a trainer's checkpoints.

    `folders` is how the name of a checkpoint's folder may begin; the step comes behind it. `weights` are the places in
    it for weights, if the folder itself has none, `models` those for a config and tokenizer or a whole Hugging Face
    model. `mark` is the file that is written last. The trainer's own average is a folder whose name matches `average`,
    or optimiser state whose names match `average_state`, for the weight `name`. `rules` is the file of
    rules for the names and layouts of tensors.
    """

    folders: Names
    weights: Names = ()
    models: Names = ()
    mark: str = ""
    average: str = ""
    average_state: str = ""
    rules: Path = RULES / f"{HUGGING_FACE}.json"


TRAINERS = (
    Trainer(
        name="Trainer",  # of transformers: TRL, axolotl and LLaMA-Factory save as it does
        folders=("checkpoint-", "checkpoint_"),
        weights=("pytorch_model_fsdp_0",),
        mark=TRAINER_STATE,
    ),
    Trainer(
        name="torchtitan",
        folders=("step-",),
        average_state=r"(?:[^./]+\.)?(?=\w*optim)\w+\.state\.(?P<name>.+)\.ema(?:_\w+)?",
        rules=RULES / "torchtitan.json",
    ),
    Trainer(
        name="OLMo-core",
        folders=("step",),
        weights=("model_and_optim",),
        average=r"step\d+-merged",
        rules=RULES / "olmo_core.json",
    ),
    Trainer(
        name="Megatron", folders=("iter_",), mark="metadata.json", rules=RULES / "megatron.json"
    ),
    Trainer(
        name="verl",
        folders=("global_step_",),
        weights=(
            "actor",
            "actor/dist_ckpt",
            "actor/model/dist_ckpt",
            "dist_ckpt",
            "model/dist_ckpt",
        ),
        models=("huggingface", "actor/huggingface"),
    ),
    Trainer(
        name="NeMo RL",
        folders=("step_",),
        weights=("policy/weights", "policy/weights/model"),
    ),
)
WEIGHT_PLACES = (
    "",
    *chain.from_iterable(trainer.weights for trainer in TRAINERS),
    "sharded",  # what torch has consolidated
)
MODEL_PLACES = ("", *chain.from_iterable(trainer.models for trainer in TRAINERS))


def step_pattern(*trainers: Trainer) -> re.Pattern[str]:
    """Names of checkpoints' folders; group 1 is the step."""
    beginnings = chain.from_iterable(trainer.folders for trainer in trainers)
    return re.compile(rf"(?:{'|'.join(beginnings)})(\d+)")


def folders_in(path: Path) -> list[Path]:
    return sorted(entry for entry in path.iterdir() if entry.is_dir())


def weight_files(folder: Path) -> list[str]:
    """Names of the weight files in a folder; none if there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if WEIGHT_FILE.fullmatch(path.name))

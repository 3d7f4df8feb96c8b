"""Keys at the root of the configuration: names and types; and the check of the type of any key's value.

`check_root_keys` checks the root keys, and `souping.cli.parts` the keys of components while it builds them. Both call
`setting_mismatch`, which adds what only a configuration has to `souping.core.fields.mismatch`.
"""

from __future__ import annotations

import inspect
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from hydra import compose as hydra_compose
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from souping.cli.advice import key_advice
from souping.cli.commands import EXPERIMENT, OVERLAY
from souping.core.fields import Bounds, Count, FolderName, Hint, Seed, fits, hints_of, mismatch
from souping.core.files import expanded
from souping.core.types import Json, UserError
from souping.runs.settings import GROUP_KINDS, Goals, MinGain, MismatchMode, StopAfter
from souping.soups.settings import STORE

INNER = ("correlation", "engine", "server")
"""Groups that stand inside another group's parts."""
PARTS = tuple(group for group in GROUP_KINDS if group not in INNER)
GROUPS = (*PARTS, *INNER)
CHOSEN = (*GROUPS, "analysis")
"""Root keys whose values are choices of components."""
MERGED = ("pool", "optimiser", "merge", "tracker")
"""Groups of a merge."""


@dataclass
class Action:
    """What a command makes of a configuration, besides a run or a merge; set by commands alone."""

    plan: bool = False
    check: bool = False
    names: bool = False
    recipe: str | None = None


@dataclass
class SharedKeys:
    """Root keys of runs and merges. Hydra checks their types, `check_root_keys` all that their annotations say."""

    name: FolderName = "souping"
    seed: Seed = 0
    out: str | None = None
    action: Action = field(default_factory=Action)
    store: str = str(STORE)


@dataclass
class RunKeys(SharedKeys):
    """Root keys of a run (`conf/config.yaml`)."""

    dry_run: Count | None = None
    throughput: Annotated[float, Bounds(gt=0)] | None = None
    min_gain: MinGain | None = None
    guard_baseline: str | None = None
    extra_benchmarks: list[Any] = field(default_factory=list)
    analysis: dict[str, Any] = field(default_factory=dict)


CHOICES = {
    "stop_after": StopAfter | None,
    "pareto": Goals | None,
    "expected_mismatch": MismatchMode,
}
"""{key among `FREE`: its annotation}, for `check_root_keys`."""
FREE = {
    **dict.fromkeys((*GROUPS, "stop_after", "upload", "expected", "guard", "pareto")),
    "expected_mismatch": "error",
}
"""Root keys whose types Hydra cannot check, with their defaults."""
Config = make_dataclass(
    "Config",
    [(key, Any, field(default=value)) for key, value in FREE.items()],
    bases=(RunKeys,),
)
SETTABLE = tuple(key.name for key in fields(Config) if key.name != "action")
"""Root keys that users set."""
MergeRoot = make_dataclass(
    "MergeRoot",
    [(key, Any, field(default=None)) for key in (*MERGED, "upload")],
    bases=(SharedKeys,),
)
CHECKED: dict[str, Any] = {}
"""The configuration of the current run, for messages."""
OPEN_VALUE = re.compile(r"None|\?\?\?|\$\{\w+\}")
"""Values that a choice's file leaves open: null, ??? and the part that another group chooses (`${objective}`)."""
USER_CODE: dict[str, str] = {}
"""{file: component} of the components in use that are not part of souping."""
PACKAGE = Path(__file__).resolve().parents[1]


def register() -> None:
    """Make the schema known to Hydra, and its resolvers: `data` is the path of a file of the package."""
    USER_CODE.clear()
    ConfigStore.instance().store(name="schema", node=Config)
    ConfigStore.instance().store(name="merge_schema", node=MergeRoot)
    OmegaConf.register_new_resolver("data", lambda name: str(PACKAGE / name), replace=True)
    OmegaConf.register_new_resolver("run_folder", _run_folder, replace=True)
    OmegaConf.register_new_resolver("sweep_folder", _sweep_folder, replace=True)


def _run_folder(default: str, *, _root_: DictConfig) -> str:
    """The folder that Hydra makes for a job: that of the run, or, for a job without one, the working directory."""
    return _sweep_folder(default, _root_=_root_) if has_folder(_root_) else "."


def _sweep_folder(default: str, *, _root_: DictConfig) -> str:
    """The folder of a multirun: `out`, or the default, to which plans and checks always write."""
    if _root_.out is None or only_looks(_root_):
        return default
    return str(expanded(_root_.out, "out"))


def has_folder(config: Mapping[str, Any]) -> bool:
    """Whether a job has a folder for its results and logs: a run has; a merge, a plan and a check have none."""
    return not is_merge(config) and not only_looks(config)


def only_looks(config: Mapping[str, Any]) -> bool:
    """Whether a command makes no soup of a configuration."""
    action = config["action"]
    return bool(action["plan"] or action["check"] or action["names"])


def is_merge(config: Mapping[str, Any]) -> bool:
    """Whether a whole configuration has the keys of a merge, which evaluates nothing."""
    return "evaluator" not in config


def named_in(overrides: Iterable[str]) -> set[str]:
    """Root keys that overrides name: `pool` for `+pool.path=x` or `pool@a=b`."""
    return {re.split(r"[=.@]", word.lstrip("+~"))[0] for word in overrides}


def is_key(names: Sequence[Any]) -> bool:
    """Whether names lead to a key or below it: a root key, or a setting of a component (`pool.candidates`)."""
    depths = dict.fromkeys(SETTABLE, 1) | dict.fromkeys(GROUPS, 2)
    # An analysis has a name between the root key and its own keys.
    depths["analysis"] = 3
    return bool(names) and len(names) >= depths.get(names[0], math.inf)


def refuse_run_keys(words: Sequence[str]) -> None:
    """Refuse keys that a merge does not have (UserError)."""
    run_keys = {key.name for key in fields(Config)}
    merge_keys = {key.name for key in fields(MergeRoot)}
    experiment = next(filter(EXPERIMENT.fullmatch, words), "merge")
    for word in words:
        (key,) = named_in([word])
        if key in run_keys - merge_keys:
            raise UserError(
                f"{key} is not a key of a merge, which evaluates nothing: leave {word:.60} out, or leave "
                f"{experiment} out"
            )


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The whole configuration as plain data. Missing values are reported first.

    Candidates may be missing if the run only selects: published scores name them (`souping.cli.parts`).
    """
    # The candidates first: they are what a new user has to name.
    missing = sorted(OmegaConf.missing_keys(cfg), key=lambda key: key != "pool.candidates")
    if missing[:1] == ["pool.candidates"] and cfg.get("stop_after") == "select":
        missing = missing[1:]
    if missing:
        raise not_set(missing[0])
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def not_set(key: str) -> UserError:
    """The error of a value that is missing, with an example."""
    return UserError(f"{key} is not set{_how(key)}")


def _how(key: str) -> str:
    """What to type for a key that is not set."""
    examples = {
        "pool.candidates": "try +experiment=bfcl, or pool.candidates='[DIR_A,DIR_B,DIR_C]' (more: souping help)",
        "pool.path": "give the folder of a training run, pool.path=runs/sft",
        "scores.path": "give a CSV of scores=table (header model,<category>,...), or a folder of logs of scores=logs",
        "out": "give the folder of the model, out=DIR",
        "optimiser.weights": "give one weight a candidate: optimiser.weights='[0.5,0.2,0.3]'",
    }
    return f": {examples.get(key, f'add {key}=VALUE')}"


def check_root_keys(config: Mapping[str, Any]) -> None:
    """Check the names and values of the root keys, and keep the configuration in `CHECKED` for later messages.

    Raises:
        UserError: an unknown key (the nearest is named), a wrong type, or a wrong value of a closed choice.
    """
    CHECKED.update(config)
    # Commands set it: a message that names a key of it names what nobody typed.
    CHECKED.pop("action", None)
    merges = is_merge(config)
    known = [key.name for key in fields(MergeRoot if merges else Config)]
    for key in config:
        if key not in known:
            raise UserError(f"{key} is not a key{key_advice(key, known)}")
    hints = {**hints_of(SharedKeys if merges else RunKeys), **CHOICES}
    # Hydra checked the fields of `action`.
    del hints["action"]
    for key, value in config.items():
        # Lists and mappings of components, which are checked when these are built.
        holds_parts = key in ("extra_benchmarks", "analysis") and fits(value, hints[key])
        if key in hints and not holds_parts and (wrong := setting_mismatch(value, hints[key])):
            raise UserError(f"{key}={value!r:.60} {wrong}")


def key_of(path: str) -> str:
    """The key of the checked configuration whose value is this path, in any spelling; empty if there is none."""

    def keys(node: Any, where: str) -> Iterator[str]:
        # Keys below `where` whose value is the path.
        if isinstance(node, Mapping):
            for name, inner in node.items():
                yield from keys(inner, f"{where}.{name}")
        elif isinstance(node, str) and (
            node == path or os.path.abspath(os.path.expanduser(node)) == os.path.abspath(path)
        ):
            yield where.removeprefix(".")

    return next(keys(CHECKED, ""), "")


def setting_mismatch(value: Json, hint: Hint) -> str | None:
    """Check of the value of any key, root key or key of a component: why it does not fit, for the end of a message.

    None if it fits. Components and empty texts are judged here, all other values by `mismatch`.
    """
    # A part may be null only if its annotation says so.
    if is_part(hint) and not (value is None and fits(value, hint)):
        return "must be one of its group's choices"
    if value == "":
        return "is empty (an unset shell variable?): leave it out, or say what it is"
    return mismatch(value, hint)


def is_callable(hint: Hint) -> bool:
    """Whether an annotation is Callable, with or without its arguments."""
    return Callable in (get_origin(hint), hint)


def is_part(hint: Hint) -> bool:
    """Whether a value of this type is a component of souping or a function, so not plain data."""
    inner = [hint] if get_origin(hint) is None else get_args(hint)
    return is_callable(hint) or any(
        is_callable(member)
        or (inspect.isclass(member) and member.__module__.startswith("souping."))
        for member in inner
    )


def drop_replaced(
    cfg: DictConfig, root: str, words: Sequence[str], paths: Sequence[str] = ()
) -> None:
    """Remove from `cfg` an overlay's settings for a component in whose place the user chose another one.

    `root` is the file of the root configuration, `words` are its overrides, `paths` those of Hydra's search path.

    Hydra merges an overlay (`+experiment=mgsm`) after the groups' choices, whatever those are: `selector=topk` would
    get the overlay's settings for SoCE. What the user types stays, and so does what the choice's own file leaves open.
    """
    choices = {}
    for word in words:
        group, _, choice = word.partition("=")
        if group in GROUPS:
            choices[group] = choice
    overlay_words = []
    choice_words = []
    for word in words:
        # The values of a file of settings are a user's own: they stay.
        if word == OVERLAY or named_in([word]) & choices.keys():
            choice_words.append(word)
        else:
            overlay_words.append(word)
    # Only an override with a plus adds an overlay.
    if not choices or not any(word.startswith("+") for word in overlay_words):
        return
    # What the overlay chooses by itself, and what the user's choices are without it.
    overlay = hydra_compose(root, [*paths, *overlay_words], return_hydra_config=True).hydra
    without_overlay = hydra_compose(root, [*paths, *choice_words])
    for group, choice in choices.items():
        # The overlay's own choice: its settings are for it.
        if overlay.runtime.choices[group] == choice:
            continue
        merged = dict(cfg[group].items_ex(resolve=False))
        settings = dict(without_overlay[group].items_ex(resolve=False))
        for key, value in settings.items():
            if OPEN_VALUE.fullmatch(str(value)):
                settings[key] = merged[key]
        cfg[group] = settings

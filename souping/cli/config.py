"""Schema of the configuration, its check against the signatures it feeds, and the build of the parts.

Config stops here: parts get plain arguments, never a DictConfig.
"""

from __future__ import annotations

import inspect
import os
import re
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, make_dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from annotated_types import Interval
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_store import ConfigStore
from hydra.core.default_element import GroupDefault, ResultDefault
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from souping.analysis import Analysis
from souping.cli.help import folder
from souping.core.fields import Count, Form, Hint, Seed, fits, hints_of, mismatch, pick
from souping.core.files import expanded
from souping.core.text import first_line, is_theirs, nearest, place_of
from souping.core.types import Json, UserError
from souping.pipeline.settings import KINDS, ExtraEntry, GateMode, Margin, StopAfter, expectations, model_settings

PARTS = (
    "pool",
    "benchmark",
    "scores",
    "selector",
    "optimiser",
    "objective",
    "evaluator",
    "merge",
    "tracker",
    "executor",
)
INNER = ("correlation", "engine", "server")
"""Groups that stand inside another group's parts."""
GROUPS = (*PARTS, *INNER)
MERGED = ("pool", "optimiser", "merge", "tracker")
"""Parts of a merge."""


@dataclass
class StoreConfig:
    path: str = "outputs/store.sqlite"


@dataclass
class RootKeys:
    """Root keys. Hydra checks their types, `check` all that their annotations say."""

    name: Annotated[str, Form(r"\w[\w.-]*", "letters, digits, dots, dashes or underscores: it names a folder")] = (
        "souping"
    )
    seed: Seed = 0
    out: str | None = None
    recipe: str | None = None
    run: str | None = None
    plan: bool = False
    check: bool = False
    allow_code: bool = False
    debug: bool = False
    limit: Count | None = None
    throughput: Annotated[float, Interval(gt=0)] | None = None
    margin: Margin = 1.0
    store: StoreConfig = field(default_factory=StoreConfig)
    also: list[Any] = field(default_factory=list)
    analysis: dict[str, Any] = field(default_factory=dict)


CHOICES = {"stop_after": StopAfter | None, "gate": GateMode}
"""Root keys with a closed choice, which is no type of Hydra's."""
FREE = {**dict.fromkeys((*GROUPS, "stop_after", "upload", "expected", "shapley")), "gate": "error"}
"""Root keys whose types Hydra cannot check, with their defaults."""
Config = make_dataclass("Config", [(k, Any, field(default=v)) for k, v in FREE.items()], bases=(RootKeys,))
CHECKED: dict[str, Any] = {}
"""The configuration of the run that goes on, for messages."""
merge_defaults = ConfigLoaderImpl._compose_config_from_defaults_list
OPEN = re.compile(r"None|\?\?\?|\$\{\w+\}")
"""Values that a choice's file leaves open: null, ??? and the part that another group chooses (`${objective}`)."""
USER_CODE: dict[str, str] = {}
"""{file: component} of the components in use that are not part of souping."""
HARNESS = "souping.evaluate.lm_eval.evaluator.HarnessEvaluator"
ALSO_KEYS = ("name", "path", "benchmark", "evaluator", "objective", "tasks")
PACKAGE = Path(__file__).resolve().parents[1]


def register() -> None:
    """Make the schema known to Hydra, and the resolver `data`: the path of a file of the package."""
    USER_CODE.clear()
    drop_settings_of_replaced_choices(GROUPS)
    ConfigStore.instance().store(name="schema", node=Config)
    OmegaConf.register_new_resolver("data", lambda name: str(PACKAGE / name), replace=True)


def compose(overrides: Sequence[str]) -> dict[str, Any]:
    """What the command line would run with these overrides, as plain data, checked."""
    register()
    with initialize_config_dir(config_dir=str(folder()), version_base="1.3"):
        plain = resolved(hydra_compose("config", list(overrides)))
    build(plain, named_in(overrides))
    return plain


def named_in(overrides: Iterable[str]) -> set[str]:
    """Root keys that overrides speak of."""
    return {re.split(r"[=.@]", word.lstrip("+~"))[0] for word in overrides}


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The whole configuration as plain data. A value that must be given is the first thing looked for."""
    missing = sorted(OmegaConf.missing_keys(cfg), key=lambda key: key != "pool.candidates")
    if missing:
        raise UserError(f"{missing[0]} is not set{_how(missing[0])}")
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    if plain["gate"] is False:  # what YAML makes of a bare off
        plain["gate"] = "off"
    if plain["recipe"] == "":
        raise UserError("recipe is not set: give the recipe beside a soup, recipe=soup/recipe.json")
    return {str(k): v for k, v in plain.items()}


def _how(key: str) -> str:
    examples = {
        "pool.candidates": "try +experiment=demo, or pool.candidates='[DIR_A,DIR_B,DIR_C]' (more: souping help)",
        "scores.path": "give a CSV: scores.path=FILE.csv (header model,<category>,...)",
        "optimiser.weights": "give one weight a candidate: optimiser.weights='[0.5,0.2,0.3]'",
    }
    return f": {examples[key]}" if key in examples else f": add {key}=VALUE"


def check(config: Mapping[str, Any]) -> None:
    """Check the root keys.

    Raises:
        UserError: an unknown key (the nearest is named), a wrong type, or a wrong value of a closed choice.
    """
    CHECKED.update(config)
    known = [f.name for f in fields(Config)]
    for key in config:
        if key not in known:
            raise UserError(f"{key} is not a key{near_key(key, config, known)}")
    hints = {**hints_of(RootKeys), **CHOICES, "store.path": str}
    for key, value in {**config, "store.path": config["store"]["path"]}.items():
        holds_parts = key == "store" or (key in ("also", "analysis") and fits(value, hints[key]))
        if key in hints and not holds_parts and (wrong := _mismatch(value, hints[key])):
            raise UserError(f"{key}={value!r:.60} {wrong}")
    if config["shapley"] is not None and "shapley" not in config["analysis"]:
        raise UserError("shapley is set, but is not among the analyses: add analysis=[shapley]")
    expectations(config["expected"])


def build(config: Mapping[str, Any], given: Collection[str] = GROUPS) -> dict[str, Any]:
    """The parts of a run, checked. A merge needs few; of the others those are looked at that were `given`.

    Raises:
        UserError: as `check` and `build_part`.
    """
    check(config)
    merges = merges_only(config)
    groups = [group for group in GROUPS if not merges or group in MERGED or group in given]
    parts = {group: build_part(config[group], kind_of(group), group) for group in groups}
    if merges:
        return {group: parts[group] for group in MERGED}
    analyses = {name: build_part(node, Analysis, f"analysis.{name}") for name, node in config["analysis"].items()}
    return {**{group: parts[group] for group in PARTS}, "also": _build_also(config), "analyses": analyses}


def _build_also(config: Mapping[str, Any]) -> tuple[ExtraEntry, ...]:
    """The entries of `also` with the parts that they name."""
    made = []
    for number, entry in enumerate(config["also"]):
        nodes = also_nodes(entry, number, config["evaluator"])
        name = nodes.pop("name")
        parts = {key: build_part(node, KINDS[key], f"also[{number}].{key}") for key, node in nodes.items()}
        made.append(ExtraEntry(name=name, **parts))
    return tuple(made)


def build_part(node: Json, kind: Hint, where: str) -> Any:
    """The part that a node makes, its settings held against the signature that they feed.

    Values are taken as they are, `${...}` in a folder's name included. The one place that instantiates (hydra-core 1.4
    will want its whitelist here).

    Raises:
        UserError: an unknown or missing setting, or a wrong value; whatever else a class of the user's raises, with its
            place; something that is not of `kind` comes out.
    """
    if node is None:
        raise UserError(
            f"no {where} is chosen: add {where}=NAME (experiment=merge chooses none: leave it out if there are items)"
        )
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise UserError(f"{where} must be one of its group's choices ({where}=NAME), not {node!r:.60}")
    target = _target(node, where)
    known, hints = _settable(target, kind, where), hints_of(target)
    given = {str(key): value for key, value in node.items() if key not in ("_target_", "_partial_")}
    for key in given:
        if key not in known:
            name = str(node["_target_"]).rsplit(".", 1)[-1]
            raise UserError(f"{where}.{key} is not a key of {where}={name}{nearest(key, known)}")
    values = {key: _setting(value, hints.get(key, Any), where, key) for key, value in given.items()}
    for key in known:
        if known[key] and key not in given:
            raise UserError(f"{where}.{key} is not set")
    called = is_callable(kind) and not inspect.isclass(target)
    if node.get("_partial_", False) is not called:
        raise UserError(f"{where}._partial_={node.get('_partial_')} must be {str(called).lower()}")
    made = partial(target, **values) if called else _made(target, values)
    if is_part(kind) and inspect.isclass(kind) and kind not in type(made).__mro__:
        raise UserError(f"{where}: {place_of(target)} makes a {type(made).__name__}, no {kind.__name__}")
    return made


def _setting(value: Json, hint: Hint, where: str, key: str) -> Any:
    """The value of a part's setting: a part that is built, or what fits the annotation."""
    if is_part(hint) and isinstance(value, Mapping) and "_target_" in value:
        return build_part(value, hint, key if value == CHECKED.get(key) else f"{where}.{key}")
    if is_part(hint) and isinstance(value, str) and key in GROUPS:
        raise UserError(f"{where}.{key}={value:.60} is a choice of the group {key}: write {key}={value:.60}")
    if wrong := _mismatch(value, hint):
        if value is None and key in GROUPS:
            return build_part(None, hint, key)
        raise UserError(f"{where}.{key}={value!r:.60} {wrong}")
    return value


def key_of(path: str) -> str:
    """The key that names a path, however it is written there; empty where none does."""

    def keys(node: Any, where: str) -> Iterator[str]:
        inner = node.items() if isinstance(node, Mapping) else ()
        yield from (key for name, one in inner for key in keys(one, f"{where}.{name}" if where else str(name)))
        if isinstance(node, str) and (
            node == path or os.path.abspath(os.path.expanduser(node)) == os.path.abspath(path)
        ):
            yield where

    return next(keys(CHECKED, ""), "")


def near_key(key: str, config: Mapping[str, Any], known: Iterable[str]) -> str:
    """`; did you mean GROUP.KEY?` where a group has a key of this name, else the nearest of the root's."""
    inner = [f"{group}.{key}" for group in GROUPS if key in (config.get(group) or ())]
    return f"; did you mean {inner[0]}?" if inner else nearest(key, known)


def kind_of(group: str) -> Any:
    """What the choices of a group make; engines and servers are imported only here."""
    if group in KINDS:
        return KINDS[group]
    from souping.evaluate.engines import Engine
    from souping.evaluate.servers import Server

    return {"engine": Engine, "server": Server}[group]


def _mismatch(value: Json, hint: Hint) -> str | None:
    if is_part(hint) and not (value is None and fits(value, hint)):
        return "must be one of its group's choices"
    empty = "is empty (an unset shell variable?): leave it out, or say what it is"
    return empty if value == "" else mismatch(value, hint)


def _target(node: Mapping[str, Json], where: str) -> Callable[..., Any]:
    """The class or function that a node names.

    Raises:
        UserError: it cannot be imported; if a module of the user's fails, with its line and error.
    """
    name = node["_target_"]
    try:
        made: Callable[..., Any] = get_object(str(name))
    except Exception as error:  # whatever the module does while it is imported
        cause, why = error.__cause__, ""
        absent = isinstance(cause, ModuleNotFoundError) and str(name).startswith(str(cause.name))
        if cause is not None and not absent and not isinstance(cause, AttributeError):
            frames = [f for f in traceback.extract_tb(cause.__traceback__) if "importlib" not in f.filename]
            line = f"{frames[-1].filename}:{frames[-1].lineno}: " if frames else ""
            why = f": {line}{type(cause).__name__}: {first_line(cause)}"
        raise UserError(f"{where}._target_={name!r:.80} is no class or function that can be imported{why}") from None
    if not callable(made):
        raise UserError(f"{where}._target_={name} is no class or function")
    if is_theirs(made):
        with suppress(TypeError):
            USER_CODE[inspect.getfile(made)] = place_of(made)
    return made


def _settable(target: Callable[..., Any], kind: Hint, where: str) -> dict[str, bool]:
    """{argument: whether it must be given}; of a function that is itself the part, those that have a default.

    Raises:
        UserError: what it makes is of another kind.
    """
    if inspect.isclass(target) and inspect.isclass(kind) and kind not in target.__mro__:
        raise UserError(
            f"{where}._target_={target.__module__}.{target.__qualname__} is no {kind.__name__}: subclass it"
        )
    try:
        parameters = inspect.signature(target).parameters.values()
    except ValueError:
        raise UserError(f"{where}._target_={target} has no signature to check settings against") from None
    if is_callable(kind) and not inspect.isclass(target):
        return {p.name: False for p in parameters if p.default is not p.empty}
    spread = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {p.name: p.default is p.empty for p in parameters if p.kind not in spread}


def is_callable(hint: Hint) -> bool:
    return Callable in (get_origin(hint), hint)


def is_part(hint: Hint) -> bool:
    """Whether a part is wanted, and no plain value."""
    inner = [hint] if get_origin(hint) is None else get_args(hint)
    return is_callable(hint) or any(
        is_callable(one) or (inspect.isclass(one) and one.__module__.startswith("souping.")) for one in inner
    )


def merges_only(config: Mapping[str, Any]) -> bool:
    """Whether nothing is evaluated: a soup of weights given by hand, or of a recipe."""
    from souping.evaluate.benchmark import NoBenchmark

    node = config["benchmark"]
    named = isinstance(node, Mapping) and "_target_" in node
    with suppress(UserError):  # building the benchmark reports it
        return bool(config["recipe"]) or (named and _target(node, "benchmark") is NoBenchmark)
    return False


def _made(target: Callable[..., Any], values: Mapping[str, Any]) -> Any:
    try:
        return target(**values)
    except UserError:
        raise
    except Exception as error:
        if not is_theirs(target):
            raise
        raise UserError(f"{place_of(target)}: {type(error).__name__}: {first_line(error)}") from error


def also_nodes(entry: Any, number: int, own: Mapping[str, Any]) -> dict[str, Any]:
    """Entry of `also` as its configuration nodes: `name`, and `evaluator`, `benchmark`, `objective` where it says them.

    `own` is the run's evaluator node: lm_eval takes its dtype and device where the entry is silent. A text is the path
    of a JSON Lines file or the name of an lm_eval task. A mapping has `path` or `benchmark` (items) and `evaluator`, or
    `tasks` with any other key of evaluator=lm_eval; and `name`, `objective`.

    Raises:
        UserError: it is neither, or a file is not there.
    """
    where = f"also[{number}]"
    if isinstance(entry, str) and entry.strip():
        return _file(entry, where) if _is_path(entry) else _tasks({"name": entry, "tasks": [entry]}, own)
    if not isinstance(entry, Mapping) or not entry:
        raise UserError(f"{where}={entry!r:.60} must be a JSON Lines file, an lm_eval task or a mapping")
    if "name" in entry and (not isinstance(entry["name"], str) or not entry["name"].strip()):
        raise UserError(f"{where}.name={entry['name']!r:.60} must be a text")
    if "tasks" in entry:
        if not entry["tasks"]:
            raise UserError(f"{where}.tasks is empty: name tasks or groups of lm_eval")
        if not isinstance(entry["tasks"], str | list):
            raise UserError(f"{where}.tasks={entry['tasks']!r:.60} must be a list of tasks or groups of lm_eval")
        return _tasks(entry, own)
    for key in entry:
        pick(str(key), ALSO_KEYS, f"{where}: key")
    if "path" in entry and "benchmark" in entry:
        raise UserError(f"{where} has both path and benchmark: give one")
    if not {"path", "benchmark", "evaluator"} & set(entry):
        raise UserError(f"{where} names no items: give path, tasks, benchmark, or an evaluator that brings its own")
    given = {key: entry[key] for key in ("evaluator", "benchmark", "objective") if key in entry}
    base = _file(str(entry["path"]), where) if "path" in entry else {"name": f"also {number}"}
    return {**base, **given, **({"name": entry["name"]} if "name" in entry else {})}


def _is_path(text: str) -> bool:
    return text.endswith((".jsonl", ".json")) or text.startswith((".", "/", "~")) or Path(text).is_file()


def _file(text: str, where: str) -> dict[str, Any]:
    path = expanded(text, where)
    if not path.is_file():
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"{where}={text}: there is no such file{nearest(path.name, beside)}")
    return {"name": path.stem, "benchmark": {"_target_": "souping.evaluate.benchmark.Benchmark", "path": str(path)}}


def _tasks(entry: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    tasks = entry["tasks"]
    name = entry.get("name") or (tasks if isinstance(tasks, str) else "+".join(map(str, tasks)))
    own_tasks = {"include_path": own["include_path"]} if "include_path" in own else {}
    given = {key: value for key, value in entry.items() if key not in ("name", "objective")}
    settings = model_settings(own) | own_tasks | given
    settings["tasks"] = [tasks] if isinstance(tasks, str) else tasks
    node = {"name": str(name), "evaluator": {"_target_": HARNESS, **settings}}
    return {**node, "objective": entry["objective"]} if "objective" in entry else node


def drop_settings_of_replaced_choices(groups: Collection[str]) -> None:
    """Keep settings that an overlay (`conf/experiment`) has for a part out of the part that replaces it.

    Hydra merges an overlay after the groups' choices, whatever those are: `+experiment=mgsm selector=topk` would hand
    TopK the overlay's settings for SoCE. Overrides come later, so what the user types is not touched.
    """

    def compose(loader: ConfigLoaderImpl, defaults: list[ResultDefault], repo: Any) -> DictConfig:
        config = merge_defaults(loader, defaults, repo)
        parts = [default for default in defaults if str(default.config_path).partition("/")[0] in groups]
        replaced = _chosen(parts) - _named(defaults, repo)
        plain = merge_defaults(loader, parts, repo) if replaced else {}
        for group in {group for group, _ in replaced}:
            merged, own = (dict(whole[group].items_ex(resolve=False)) for whole in (config, plain))
            config[group] = {key: merged[key] if OPEN.fullmatch(str(value)) else value for key, value in own.items()}
        return config

    setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", compose)  # noqa: B010  # as in job.py


def _chosen(parts: list[ResultDefault]) -> set[tuple[str, str]]:
    """(group, choice) in force; a choice that builds on another of its group counts by its own name."""
    paths = [(str(part.config_path).partition("/"), str(part.parent)) for part in parts]
    return {(group, choice) for (group, _, choice), parent in paths if not parent.startswith(f"{group}/")}


def _named(defaults: list[ResultDefault], repo: Any) -> set[tuple[str, str]]:
    """(group, choice) that files name in their defaults lists; the root's where no other file says otherwise."""
    files = [(default.primary, repo.load_config(default.config_path).defaults_list or []) for default in defaults]
    groups = [(primary, entry) for primary, entries in files for entry in entries if isinstance(entry, GroupDefault)]
    pairs = [(primary, (str(entry.group).strip("/"), str(entry.value))) for primary, entry in groups]
    others = {pair for primary, pair in pairs if not primary}
    said = {group for group, _ in others}
    return others | {pair for primary, pair in pairs if primary and pair[0] not in said}

"""Schema of the configuration, its check against the signatures it feeds, and the build of the parts.

Config stops here: parts get plain arguments, never a DictConfig.
"""

from __future__ import annotations

import inspect
import os
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, make_dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from annotated_types import Interval
from hydra import compose as hydra_compose
from hydra.core.config_store import ConfigStore
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from souping.analysis import Analysis
from souping.core.fields import Count, Form, Hint, Seed, fits, hints_of, mismatch, pick
from souping.core.files import expanded
from souping.core.text import first_line, is_user_code, listed, nearest, source_of
from souping.core.types import Json, JsonObject, UserError
from souping.pipeline.settings import (
    GROUP_KINDS,
    ExtraEntry,
    GateMode,
    MarginSetting,
    StopAfter,
    expectations,
    model_settings,
)

INNER = ("correlation", "engine", "server")
"""Groups that stand inside another group's parts."""
PARTS = tuple(group for group in GROUP_KINDS if group not in INNER)
GROUPS = (*PARTS, *INNER)
MERGED = ("pool", "optimiser", "merge", "tracker")
"""Parts of a merge."""


@dataclass
class StoreConfig:
    path: str = "outputs/store.sqlite"


@dataclass
class RootKeys:
    """Root keys. Hydra checks their types, `check` all that their annotations say."""

    name: Annotated[
        str, Form(r"\w[\w.-]*", "letters, digits, dots, dashes or underscores: it names a folder")
    ] = "souping"
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
    margin: MarginSetting | None = None
    guard_against: str | None = None
    pareto: list[str] | None = None
    store: StoreConfig = field(default_factory=StoreConfig)
    also: list[Any] = field(default_factory=list)
    analysis: dict[str, Any] = field(default_factory=dict)


CHOICES = {"stop_after": StopAfter | None, "gate": GateMode}
"""Root keys with a closed choice, which is no type of Hydra's."""
FREE = {
    **dict.fromkeys(
        (*GROUPS, "stop_after", "upload", "expected", "shapley", "size", "guard", "pick")
    ),
    "gate": "error",
}
"""Root keys whose types Hydra cannot check, with their defaults."""
Config = make_dataclass(
    "Config", [(k, Any, field(default=v)) for k, v in FREE.items()], bases=(RootKeys,)
)
CHECKED: dict[str, Any] = {}
"""The configuration of the current run, for messages."""
OPEN_VALUE = re.compile(r"None|\?\?\?|\$\{\w+\}")
"""Values that a choice's file leaves open: null, ??? and the part that another group chooses (`${objective}`)."""
USER_CODE: dict[str, str] = {}
"""{file: component} of the components in use that are not part of souping."""
HARNESS = "souping.evaluate.lm_eval.HarnessEvaluator"
PACKAGE = Path(__file__).resolve().parents[1]


def register() -> None:
    """Make the schema known to Hydra, and the resolver `data`: the path of a file of the package."""
    USER_CODE.clear()
    ConfigStore.instance().store(name="schema", node=Config)
    OmegaConf.register_new_resolver("data", lambda name: str(PACKAGE / name), replace=True)


def named_in(overrides: Iterable[str]) -> set[str]:
    """Root keys that overrides speak of."""
    return {re.split(r"[=.@]", word.lstrip("+~"))[0] for word in overrides}


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The whole configuration as plain data. Missing values are reported first."""
    missing = sorted(OmegaConf.missing_keys(cfg), key=lambda key: key != "pool.candidates")
    if missing:
        raise UserError(f"{missing[0]} is not set{_how(missing[0])}")
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    if plain["recipe"] == "":  # `???` in an overlay does not replace a null
        raise UserError(f"recipe is not set{_how('recipe')}")
    if plain["gate"] is False:  # what YAML makes of a bare off
        plain["gate"] = "off"
    return {str(k): v for k, v in plain.items()}


def _how(key: str) -> str:
    examples = {
        "pool.candidates": "try +experiment=bfcl, or pool.candidates='[DIR_A,DIR_B,DIR_C]' (more: souping help)",
        "pool.path": "give the folder of a training run, pool.path=runs/sft",
        "scores.path": "give a CSV: scores.path=FILE.csv (header model,<category>,...)",
        "recipe": "give the recipe beside a soup, recipe=soup/recipe.json",
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


def build(config: Mapping[str, Any]) -> dict[str, Any]:
    """The components of a run, or the few of a merge, checked.

    Raises:
        UserError: as `check` and `build_part`.
    """
    check(config)
    if merges_only(config):
        return {group: build_part(config[group], GROUP_KINDS[group], group) for group in MERGED}
    parts = {group: build_part(config[group], kind_of(group), group) for group in GROUPS}
    analyses = {
        name: build_part(node, Analysis, f"analysis.{name}")
        for name, node in config["analysis"].items()
    }
    return {
        **{group: parts[group] for group in PARTS},
        "also": _build_also(config),
        "analyses": analyses,
    }


def _build_also(config: Mapping[str, Any]) -> tuple[ExtraEntry, ...]:
    """The entries of `also` with the part that each names."""
    entries = []
    for number, entry in enumerate(config["also"]):
        name, group, node = also_node(entry, f"also[{number}]", config["evaluator"])
        part = build_part(node, GROUP_KINDS[group], f"also[{number}].{group}")
        entries.append(ExtraEntry(name=name, **{group: part}))
    return tuple(entries)


def build_part(node: Json, kind: Hint, where: str) -> Any:
    """The part that a node makes, its settings held against the signature that they feed.

    Values are taken as they are, `${...}` in a folder's name included. The one place that instantiates (hydra-core 1.4
    will want its whitelist here).

    Raises:
        UserError: an unknown or missing setting, or a wrong value; or the result is not of this kind.
    """
    if node is None:
        raise UserError(
            f"no {where} is chosen: add {where}=NAME (experiment=merge chooses none: leave it out if there are items)"
        )
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise UserError(
            f"{where} must be one of its group's choices ({where}=NAME), not {node!r:.60}"
        )
    target = _target(node, where)
    known = _settable(target, kind)
    hints = hints_of(target)
    settings = {str(key): value for key, value in node.items() if key != "_target_"}
    for key in settings:
        if key not in known:
            name = str(node["_target_"]).rsplit(".", 1)[-1]
            raise UserError(f"{where}.{key} is not a key of {where}={name}{nearest(key, known)}")
    values = {
        key: _setting(value, hints.get(key, Any), where, key) for key, value in settings.items()
    }
    for key in known:
        if known[key] and key not in settings:
            raise UserError(f"{where}.{key} is not set")
    _refuse_abstract(target, where)
    called = is_callable(kind) and not inspect.isclass(target)
    part = partial(target, **values) if called else target(**values)
    if inspect.isclass(kind) and not isinstance(part, kind):
        raise UserError(
            f"{where}: {source_of(target)} makes a {type(part).__name__}, no {kind.__name__}"
        )
    return part


def _refuse_abstract(target: Callable[..., Any], where: str) -> None:
    """Refuse a class that lacks methods, by its name and theirs (UserError)."""
    if inspect.isabstract(target):
        missing = listed(sorted(vars(target)["__abstractmethods__"]))
        raise UserError(
            f"{where}: {source_of(target)} lacks {missing}, which its base class leaves to it"
        )


def _setting(value: Json, hint: Hint, where: str, key: str) -> Any:
    """The value of a part's setting: a part that is built, or what fits the annotation."""
    if is_part(hint) and isinstance(value, Mapping) and "_target_" in value:
        return build_part(value, hint, key if value == CHECKED.get(key) else f"{where}.{key}")
    if is_part(hint) and isinstance(value, str) and key in GROUPS:
        raise UserError(
            f"{where}.{key}={value:.60} is a choice of the group {key}: write {key}={value:.60}"
        )
    if wrong := _mismatch(value, hint):
        raise UserError(f"{where}.{key}={value!r:.60} {wrong}")
    return value


def key_of(path: str) -> str:
    """The key that names a path, however it is written there; empty where none does."""

    def keys(node: Any, where: str) -> Iterator[str]:
        if isinstance(node, Mapping):
            for name, inner in node.items():
                yield from keys(inner, f"{where}.{name}" if where else str(name))
        elif isinstance(node, str) and (
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
    if group in GROUP_KINDS:
        return GROUP_KINDS[group]
    from souping.evaluate.engines.transformers import Engine
    from souping.evaluate.servers.choices import Server

    return {"engine": Engine, "server": Server}[group]


def _mismatch(value: Json, hint: Hint) -> str | None:
    if is_part(hint) and not (value is None and fits(value, hint)):
        return "must be one of its group's choices"
    empty = "is empty (an unset shell variable?): leave it out, or say what it is"
    return empty if value == "" else mismatch(value, hint)


def _target(node: JsonObject, where: str) -> Callable[..., Any]:
    """The class or function that a node names. Raises UserError if it cannot be imported, with the reason."""
    name = node["_target_"]
    try:
        target: Callable[..., Any] = get_object(str(name))
    except Exception as error:  # whatever the module does while it is imported
        cause = error.__cause__ or error
        trace = traceback.extract_tb(cause.__traceback__)
        lines = [
            f"{f.filename}:{f.lineno}: "
            for f in trace
            if not re.search("importlib|/hydra/", f.filename)
        ]
        why = f"{''.join(lines[-1:])}{type(cause).__name__}: {first_line(cause)}"
        raise UserError(
            f"{where}._target_={name!r:.80} is no class or function that can be imported: {why}"
        ) from None
    if not callable(target):
        raise UserError(f"{where}._target_={name} is no class or function")
    if is_user_code(target):
        with suppress(TypeError):
            USER_CODE[inspect.getfile(target)] = source_of(target)
    return target


def _settable(target: Callable[..., Any], kind: Hint) -> dict[str, bool]:
    """{argument: whether it must be given}; of a function that is itself the component, those that have a default."""
    parameters = inspect.signature(target).parameters.values()
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
        is_callable(member)
        or (inspect.isclass(member) and member.__module__.startswith("souping."))
        for member in inner
    )


def merges_only(config: Mapping[str, Any]) -> bool:
    """Whether nothing is evaluated: a soup of weights given by hand, or of a recipe."""
    from souping.evaluate.benchmark import NoBenchmark

    node = config["benchmark"]
    named = isinstance(node, Mapping) and "_target_" in node
    with suppress(UserError):  # building the benchmark reports it
        return bool(config["recipe"]) or (named and _target(node, "benchmark") is NoBenchmark)
    return False


def also_node(
    entry: Any, where: str, evaluator: Mapping[str, Any]
) -> tuple[str, str, dict[str, Any]]:
    """Entry of `also`: its name, the group that it chooses (`evaluator` or `benchmark`), and the node of the choice.

    `evaluator` is the run's evaluator node: lm_eval takes its dtype and device unless the entry has them. A text is the
    path of a JSON Lines file or the name of an lm_eval task. A mapping has `path`, or `tasks` with any other key of
    evaluator=lm_eval; and `name`.

    Raises:
        UserError: it is neither, or a file is missing.
    """
    if isinstance(entry, str) and entry.strip():
        entry = {"path": entry} if _is_path(entry) else {"name": entry, "tasks": [entry]}
    sources = {"path", "tasks"}.intersection(entry if isinstance(entry, Mapping) else ())
    if not sources or not isinstance(entry.get("name", ""), str):
        raise UserError(
            f"{where}={entry!r:.60} must be a file of items, an lm_eval task, or a mapping with path or tasks"
        )
    if "tasks" in sources:
        return _tasks(entry, where, evaluator)
    for key in entry:
        pick(str(key), ("name", "path"), f"{where}: key")
    return _file(str(entry["path"]), where, entry.get("name"))


def _is_path(text: str) -> bool:
    return (
        text.endswith((".jsonl", ".json"))
        or text.startswith((".", "/", "~"))
        or Path(text).is_file()
    )


def _file(text: str, where: str, name: str | None) -> tuple[str, str, dict[str, Any]]:
    path = expanded(text, where)
    if not path.is_file():
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"{where}={text}: there is no such file{nearest(path.name, beside)}")
    node = {"_target_": "souping.evaluate.benchmark.Benchmark", "path": str(path)}
    return name or path.stem, "benchmark", node


def _tasks(
    entry: Mapping[str, Any], where: str, evaluator: Mapping[str, Any]
) -> tuple[str, str, dict[str, Any]]:
    tasks = [entry["tasks"]] if isinstance(entry["tasks"], str) else entry["tasks"]
    if not isinstance(tasks, list) or not tasks:
        raise UserError(f"{where}.tasks={tasks!r:.60} must be a list of tasks or groups of lm_eval")
    shared = model_settings(evaluator) | (
        {"include_path": evaluator["include_path"]} if "include_path" in evaluator else {}
    )
    settings = {key: value for key, value in entry.items() if key != "name"}
    name = str(entry.get("name") or "+".join(map(str, tasks)))
    return name, "evaluator", {"_target_": HARNESS, **shared, **settings, "tasks": tasks}


def drop_replaced(cfg: DictConfig, words: Sequence[str], paths: Sequence[str] = ()) -> None:
    """Take an overlay's settings for a component out of the one that the user chose in its place.

    `words` are the overrides of the configuration, `paths` those of Hydra's search path.

    Hydra merges an overlay (`+experiment=mgsm`) after the groups' choices, whatever those are: `selector=topk` would
    get the overlay's settings for SoCE. What the user types stays, and so does what the choice's own file leaves open.
    """
    chosen = {}
    for word in words:
        group, _, choice = word.partition("=")
        if group in GROUPS:
            chosen[group] = choice
    others = [word for word in words if not named_in([word]) & chosen.keys()]
    if not chosen or not any(word.startswith("+") for word in others):
        return
    hydra = hydra_compose("config", [*paths, *others], return_hydra_config=True).hydra
    plain = hydra_compose("config", [*paths, *(word for word in words if word not in others)])
    for group, choice in chosen.items():
        if hydra.runtime.choices[group] == choice:
            continue
        merged = dict(cfg[group].items_ex(resolve=False))
        settings = dict(plain[group].items_ex(resolve=False))
        for key, value in settings.items():
            if OPEN_VALUE.fullmatch(str(value)):
                settings[key] = merged[key]
        cfg[group] = settings

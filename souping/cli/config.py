"""Schema of the configuration, its check against the signatures it feeds, and the build of the parts.

Config stops here: parts get plain arguments, never a DictConfig.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.utils import get_object
from omegaconf import MISSING, DictConfig, OmegaConf

from souping.core.files import expanded
from souping.core.text import first_line, nearest
from souping.core.types import Json, UserError
from souping.pipeline.baseline_gate import MODES, expectations
from souping.pipeline.side_benchmarks import SideEntry, held

PARTS = ("pool", "benchmark", "scores", "selector", "optimiser", "objective", "evaluator", "merge", "tracker")
INNER = ("correlation", "engine", "server")
"""Groups that stand inside another group's parts."""


class StopAfter(Enum):
    select = "select"
    search = "search"


@dataclass
class StoreConfig:
    path: str = "outputs/store.sqlite"


@dataclass
class RootKeys:
    """Root keys with their types."""

    name: str = "souping"
    seed: int = 0
    stop_after: StopAfter | None = None
    out: str | None = None
    recipe: str | None = None
    plan: bool = False
    throughput: float | None = None
    debug: bool = False
    store: StoreConfig = field(default_factory=StoreConfig)


FREE = {"upload": None, "gate": "error", "expected": None} | dict.fromkeys((*PARTS, *INNER), MISSING)
"""Root keys whose values Hydra cannot check: groups, which `check` holds against their target's signature, and keys
that take several types."""
Config = make_dataclass(
    "Config",
    [
        *((key, Any, field(default=value)) for key, value in FREE.items()),
        ("also", list[Any], field(default_factory=list)),
    ],
    bases=(RootKeys,),
)


HARNESS = "souping.evaluate.lm_eval.evaluator.HarnessEvaluator"
ALSO_KEYS = ("name", "path", "benchmark", "evaluator", "objective", "tasks")
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def register() -> None:
    """Make the schema known to Hydra, and the resolvers `pantry` and `data` (files that travel with the package)."""
    ConfigStore.instance().store(name="schema", node=Config)
    OmegaConf.register_new_resolver("pantry", _pantry, replace=True)
    OmegaConf.register_new_resolver("data", lambda name: str(EXAMPLES / name), replace=True)


def _pantry(what: str) -> list[str] | str:
    from souping.examples import pantry

    return [str(pantry.path(name)) for name in pantry.CANDIDATES] if what == "candidates" else str(pantry.path(what))


def folder() -> Path:
    """Where the YAML files lie: in the installed package, or beside it in a checkout."""
    packaged = Path(__file__).resolve().parents[1] / "conf"
    return packaged if packaged.is_dir() else Path(__file__).resolve().parents[2] / "conf"


def compose(overrides: Sequence[str]) -> dict[str, Any]:
    """What the command line would run with these overrides, as plain data, checked."""
    register()
    with initialize_config_dir(config_dir=str(folder()), version_base="1.3"):
        plain = resolved(hydra_compose("config", list(overrides)))
    check(plain)
    return plain


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The whole configuration as plain data. A value that must be given is the first thing looked for."""
    missing = sorted(OmegaConf.missing_keys(cfg), key=lambda key: key != "pool.candidates")
    if missing:
        raise UserError(f"{missing[0]} is not set{_how(missing[0])}")
    plain = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    assert isinstance(plain, dict)
    if plain["gate"] is False:  # what YAML makes of a bare off
        plain["gate"] = "off"
    if plain["recipe"] == "":
        raise UserError("recipe is not set: give the recipe beside a soup, recipe=soup/recipe.json")
    return {str(k): v for k, v in plain.items()}


def _how(key: str) -> str:
    examples = {
        "pool.candidates": "try +experiment=bfcl, or pool.candidates='[DIR_A,DIR_B,DIR_C]'",
        "scores.path": "give a CSV: scores.path=FILE.csv (header model,<category>,...)",
        "optimiser.weights": "give one weight a candidate: optimiser.weights='[0.5,0.2,0.3]'",
    }
    return f": {examples[key]}" if key in examples else f": add {key}=VALUE"


def check(config: Mapping[str, Any]) -> None:
    """Hold every node against the signature that it feeds, before anything is built.

    Raises:
        UserError: unknown keys (nearest named), wrong types or a wrong value of a closed choice; up to three, then a
            count.
    """
    known = [f.name for f in fields(Config)]
    problems = [f"{key} is not a key{nearest(key, known)}" for key in config if key not in known]
    problems += [p for part in (*PARTS, "correlation", "engine", "server") for p in _problems(part, config[part])]
    problems += [p for where, node in _beside(config) for p in _problems(where, node)]
    if config["gate"] not in MODES:
        hint = nearest(str(config["gate"]), MODES)
        problems.append(f"gate={config['gate']} must be one of {', '.join(MODES)}{hint}")
    if config["throughput"] is not None and config["throughput"] <= 0:
        problems.append(f"throughput={config['throughput']} must be above 0: items evaluated a second")
    expectations(config["expected"])
    if config["seed"] < 0 or config["seed"] >= 2**32:
        problems.append(f"seed={config['seed']} must be from 0 to {2**32 - 1}")
    if not re.fullmatch(r"\w[\w.-]*", config["name"]):
        problems.append(
            f"name={config['name']!r} must be letters, digits, dots, dashes or underscores: it names a folder"
        )
    if not config["store"]["path"]:
        problems.append("store.path is empty: name a file")
    if problems:
        more = f"\n(and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise UserError("\n".join(problems[:3]) + more)


def _problems(where: str, node: Json) -> Iterator[str]:
    if not isinstance(node, Mapping) or "_target_" not in node:
        yield f"{where} must be one of its group's choices ({where}=NAME), not {node!r:.60}"
        return
    try:
        target = get_object(str(node["_target_"]))
    except (ImportError, ValueError):
        yield f"{where}._target_={node['_target_']} is no class or function that can be imported"
        return
    known = inspect.signature(target).parameters
    hints = get_type_hints(target.__init__ if inspect.isclass(target) else target)
    for key, value in node.items():
        if key in ("_target_", "_partial_"):
            continue
        if key not in known:
            yield f"{where}.{key} is not a key of {where}={_short(node)}{nearest(str(key), known)}"
        elif isinstance(value, Mapping) and "_target_" in value:
            continue
        elif message := _mismatch(value, hints.get(str(key), Any)):
            yield f"{where}.{key}={value!r:.60} {message}"


def _short(node: Mapping[str, Json]) -> str:
    return str(node["_target_"]).rsplit(".", 1)[-1]


def _beside(config: Mapping[str, Any]) -> Iterator[tuple[str, Json]]:
    """(where, node) of every part that the entries of `also` name."""
    for number, entry in enumerate(config["also"]):
        for part, node in also_nodes(entry, number, config["evaluator"]).items():
            if part != "name":
                yield f"also[{number}].{part}", node


def _mismatch(value: Json, hint: Any) -> str | None:
    """What is wrong with a value's type, or None."""
    from pydantic import TypeAdapter, ValidationError

    if get_origin(hint) is Literal and value not in get_args(hint):
        choices = [str(c) for c in get_args(hint)]
        return f"must be one of {', '.join(choices)}{nearest(str(value), choices)}"
    if inspect.isclass(hint) and hint.__module__.startswith("souping."):  # a part inside a part
        return "must be one of its group's choices"
    try:
        TypeAdapter(hint).validate_python(value, strict=True)
    except ValidationError:
        return f"must be {_words(hint)}"
    return None


def _words(hint: Any) -> str:
    names = {int: "an integer", float: "a number", str: "a text", bool: "true or false", type(None): "null"}
    if hint in names:
        return names[hint]
    arguments = get_args(hint)
    if get_origin(hint) is list:
        return f"a list, each {_words(arguments[0])}"
    if get_origin(hint) is dict:
        return f"a mapping whose values are each {_words(arguments[1])}"
    name = str(getattr(hint, "__name__", hint))  # Python's: unions have none
    return " or ".join(_words(a) for a in arguments) if arguments else name  # Python's: unions have none


def build(config: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a run. The one place that instantiates (hydra-core 1.4 will want its whitelist here)."""
    return {part: build_part(config[part]) for part in PARTS}


def build_also(config: Mapping[str, Any]) -> tuple[SideEntry, ...]:
    """The entries of `also` with the parts that they name."""
    nodes = [also_nodes(entry, number, config["evaluator"]) for number, entry in enumerate(config["also"])]
    return tuple(SideEntry(**{k: v if k == "name" else build_part(v) for k, v in entry.items()}) for entry in nodes)


def build_part(node: Any) -> Any:
    """The part that a node makes; its values are taken as they stand, `${...}` in a folder's name included.

    Raises:
        UserError: what its class refuses.
    """
    try:
        return _instance(node)
    except (ValueError, TypeError, ArithmeticError, LookupError, RuntimeError) as error:
        raise UserError(f"{_short(node)}: {first_line(error)}") from error


def _instance(node: Any) -> Any:
    if isinstance(node, list | tuple):
        return [_instance(value) for value in node]
    if not isinstance(node, Mapping):
        return node
    values = {key: _instance(value) for key, value in node.items() if key not in ("_target_", "_partial_")}
    if "_target_" not in node:
        return values
    target = get_object(str(node["_target_"]))
    return partial(target, **values) if node.get("_partial_") else target(**values)


def as_yaml(config: Mapping[str, Any]) -> str:
    """A resolved configuration as a file that Hydra reads again: what looks like an interpolation is escaped."""
    return OmegaConf.to_yaml(OmegaConf.create(_escaped(config)))


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    if isinstance(value, Mapping):
        return {key: _escaped(inner) for key, inner in value.items()}
    return [_escaped(inner) for inner in value] if isinstance(value, list | tuple) else value


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
    if "tasks" in entry:
        if not entry["tasks"]:
            raise UserError(f"{where}.tasks is empty: name tasks or groups of lm_eval")
        return _tasks(entry, own)
    unknown = [key for key in entry if key not in ALSO_KEYS]
    if unknown:
        raise UserError(f"{where}.{unknown[0]} is not a key of an entry{nearest(str(unknown[0]), ALSO_KEYS)}")
    if "path" in entry and "benchmark" in entry:
        raise UserError(f"{where} has both path and benchmark: give one")
    if not {"path", "benchmark", "evaluator"} & set(entry):
        raise UserError(f"{where} names no items: give path, tasks, benchmark, or an evaluator that brings its own")
    given = {key: entry[key] for key in ("evaluator", "benchmark", "objective") if key in entry}
    base = _file(str(entry["path"]), where) if "path" in entry else {"name": f"also {number}"}
    return {**base, **given, **({"name": str(entry["name"])} if "name" in entry else {})}


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
    settings = held(own) | own_tasks | {key: value for key, value in entry.items() if key not in ("name", "objective")}
    settings["tasks"] = [tasks] if isinstance(tasks, str) else tasks
    node = {"name": str(name), "evaluator": {"_target_": HARNESS, **settings}}
    return {**node, "objective": entry["objective"]} if "objective" in entry else node

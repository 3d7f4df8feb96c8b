"""Build of the parts that the configuration names, each checked against the signature that it feeds.

Config stops here: parts get plain arguments, never a DictConfig.
"""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from hydra.utils import get_object
from omegaconf import MISSING

from souping.cli.advice import key_advice
from souping.cli.config_keys import (
    CHECKED,
    GROUPS,
    MERGED,
    PARTS,
    USER_CODE,
    check_root_keys,
    is_callable,
    is_merge,
    is_part,
    not_set,
    setting_mismatch,
)
from souping.core.fields import Hint, hints_of
from souping.core.installed import remedy_for
from souping.core.protocols import ScoreSource
from souping.core.text import first_line, is_user_code, listed, source_of
from souping.core.types import Json, JsonObject, Names, UserError
from souping.runs.settings import GROUP_KINDS, ExtraEntry


def build(config: Mapping[str, Any]) -> dict[str, Any]:
    """{group: component} of a run or a merge, built and checked; of a run also `extra_benchmarks` and `analyses`.

    Raises:
        UserError: a key, a value or a component is wrong.
    """
    check_root_keys(config)
    if is_merge(config):
        return {group: build_part(config[group], GROUP_KINDS[group], group) for group in MERGED}
    from souping.analysis import Analysis

    config = with_candidates(config)
    parts = {group: build_part(config[group], component_kind(group), group) for group in GROUPS}
    analyses = {}
    for name, node in config["analysis"].items():
        if isinstance(node, Mapping) and "_target_" not in node:
            raise UserError(f"analysis.{name} is not chosen: add it, analysis=[...,{name}]")
        analyses[name] = build_part(node, Analysis, f"analysis.{name}")
    return {
        **{group: parts[group] for group in PARTS},
        "extra_benchmarks": _build_extra(config),
        "analyses": analyses,
    }


def with_candidates(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration; one without candidates gets all models of its `scores` as candidates.

    Raises:
        UserError: candidates have to be named.
    """
    pool = config["pool"]
    if not isinstance(pool, Mapping) or pool.get("candidates") != MISSING:
        return config
    models: Names = ()
    if config["scores"] is not None:
        models = build_part(config["scores"], ScoreSource, "scores").models
    if not models:
        raise not_set("pool.candidates")
    candidates = [{"name": name, "path": name} for name in models]
    return {**config, "pool": {**pool, "candidates": candidates}}


def _build_extra(config: Mapping[str, Any]) -> tuple[ExtraEntry, ...]:
    """The entries of `extra_benchmarks` with the part that each names."""
    # A merge has no such entries, and loads nothing of evaluation.
    from souping.cli.extra_benchmarks import benchmark_node

    entries = []
    for number, entry in enumerate(config["extra_benchmarks"]):
        where = f"extra_benchmarks[{number}]"
        name, group, node = benchmark_node(entry, where, config["evaluator"])
        part = build_part(node, GROUP_KINDS[group], f"{where}.{group}")
        limit = entry.get("limit") if isinstance(entry, Mapping) else None
        if wrong := setting_mismatch(limit, hints_of(ExtraEntry)["limit"]):
            raise UserError(f"{where}.limit={limit!r:.60} {wrong}")
        entries.append(ExtraEntry(name=name, limit=limit, **{group: part}))
    return tuple(entries)


def component_kind(group: str) -> Any:
    """The class or annotation of a group's components. Those of engines and servers are imported here, on demand."""
    if group in GROUP_KINDS:
        return GROUP_KINDS[group]
    from souping.evaluate.engines.base import Engine
    from souping.evaluate.servers.choices import Server

    return {"engine": Engine, "server": Server}[group]


def build_part(node: Json, kind: Hint, where: str) -> Any:
    """The component of a configuration node {_target_: class or function, setting: value}, checked by its signature.

    `kind` is the class or annotation that it must have, and `where` its key in errors. Values are taken as they are,
    also with `${...}` in a folder's name. Only here is a component instantiated (hydra-core 1.4 will want its whitelist
    here).

    Raises:
        UserError: an unknown or missing setting, or a wrong value; or the result is not of this kind.
    """
    if node is None:
        raise UserError(f"no {where} is chosen: add {where}=NAME")
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
            advice = key_advice(f"{where}.{key}", known)
            raise UserError(f"{where}.{key} is not a key of {where}={name}{advice}")
    values = {
        key: _setting(value, hints.get(key, Any), where, key) for key, value in settings.items()
    }
    for key, required in known.items():
        if required and key not in settings:
            raise UserError(f"{where}.{key} is not set")
    _refuse_abstract(target, where)
    # A function is the component itself: it is called later.
    if is_callable(kind) and not inspect.isclass(target):
        return partial(target, **values)
    part = target(**values)
    if inspect.isclass(kind) and not isinstance(part, kind):
        raise UserError(
            f"{where}: {source_of(target)} makes {type(part).__name__}, not {kind.__name__}"
        )
    return part


def _refuse_abstract(target: Callable[..., Any], where: str) -> None:
    """Refuse a class that lacks methods of its base class (UserError, which names them)."""
    if inspect.isabstract(target):
        missing = listed(sorted(vars(target)["__abstractmethods__"]))
        raise UserError(
            f"{where}: {source_of(target)} lacks {missing}, which its base class leaves to it"
        )


def _setting(value: Json, hint: Hint, where: str, key: str) -> Any:
    """The checked value of one key of a component: a component built from its node, or a plain value that fits `hint`.

    Raises:
        UserError: it does not fit; `where` is the key of the component, and `key` that of the value in it.
    """
    if is_part(hint) and isinstance(value, Mapping) and "_target_" in value:
        # A component that another group chose (`${objective}`) is named by that group in errors.
        chosen = value == CHECKED.get(key)
        return build_part(value, hint, key if chosen else f"{where}.{key}")
    if is_part(hint) and isinstance(value, str) and key in GROUPS:
        raise UserError(
            f"{where}.{key}={value:.60} is a choice of the group {key}: write {key}={value:.60}"
        )
    if wrong := setting_mismatch(value, hint):
        raise UserError(f"{where}.{key}={value!r:.60} {wrong}")
    return value


def _target(node: JsonObject, where: str) -> Callable[..., Any]:
    """The class or function that a node names, whose file is noted in `USER_CODE` if souping does not ship it.

    Raises:
        UserError: it cannot be imported, or it is neither.
    """
    name = node["_target_"]
    try:
        target: Callable[..., Any] = get_object(str(name))
    except Exception as error:
        # The module may do anything while it is imported. Hydra's error has the module's as its cause.
        cause = error.__cause__ or error
        why = f"{type(cause).__name__}: {first_line(cause)}"
        # The line in the module itself.
        for frame in reversed(traceback.extract_tb(cause.__traceback__)):
            if not re.search("importlib|/hydra/", frame.filename):
                why = f"{frame.filename}:{frame.lineno}: {why}"
                break
        raise UserError(
            f"{where}._target_={name!r:.80} is not a class or function that can be imported: {why}",
            fix=remedy_for(str(name)),
        ) from None
    if not callable(target):
        raise UserError(f"{where}._target_={name} is not a class or function")
    if is_user_code(target):
        # A compiled class or function has no file.
        with suppress(TypeError):
            USER_CODE[inspect.getfile(target)] = source_of(target)
    return target


def _settable(target: Callable[..., Any], kind: Hint) -> dict[str, bool]:
    """{setting: whether it must be given} by the signature of a class or function.

    If a function is itself the component, only its arguments with a default are settings: its caller gives the others.
    """
    parameters = inspect.signature(target).parameters.values()
    if is_callable(kind) and not inspect.isclass(target):
        return {p.name: False for p in parameters if p.default is not p.empty}
    spread = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {p.name: p.default is p.empty for p in parameters if p.kind not in spread}

"""What to type in place of an override that cannot be used, by the files of `conf/`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from functools import cache
from shlex import quote
from typing import Any

from souping.cli.help import choices, folder, groups
from souping.core.text import nearest

OVERRIDE = re.compile(r"[+~]*[a-z_][\w.]*=.+", re.DOTALL)
VALUE = re.compile(r"[\[{].*|[\d.,]+", re.DOTALL)
"""Values that are no names of choices."""


def key_advice(key: str, known: Iterable[str], words: Sequence[str] = ()) -> str:
    """The end of a message on a key that its component lacks: the choices that have it, or the nearest key.

    `known` are the keys of that component, or of the root; `words` the overrides of the command line.
    """
    group = key.partition(".")[0]
    if key in owners():
        for word in words:
            if _chooses(word, group):
                return f": {word} chooses another {group}: leave one of the two out"
        return f": it belongs to {' or '.join(owners()[key])}: add {'one of these' if len(owners()[key]) > 1 else 'it'}"
    homes = [home for home in owners() if key in home.partition(".") or home in key.partition(".")]
    near = nearest(key.rpartition(".")[2] if group in groups() else group, known)
    if near and not homes:
        return near
    homes = homes or get_close_matches(key, owners(), n=1, cutoff=0.85)
    if homes:
        return f"; did you mean {' or '.join(map(_spelled, homes))}?"
    return f"; known keys: {', '.join(known) or 'none'}"


def value_advice(group: str, value: str) -> str:
    """What to type for a value that stands where the name of a choice belongs; empty if the group takes no value."""
    keys = []
    for key, defaults in owners().items():
        required = "???" in defaults.values() or key.endswith(".path")
        if key.startswith(f"{group}.") and required:
            keys.append(key)
    spelled = list(map(_spelled, keys))
    # The default choice takes it.
    if set(keys) & set(spelled):
        spelled = [key for key in keys if key in spelled]
    if "candidates" in "".join(spelled) and not value.startswith("["):
        value = f"[{value},...]"
    return " or ".join(f"{key}={quote(value)}" for key in spelled)


def joined_override(words: Sequence[str], word: str) -> str:
    """The override that a shell took apart at spaces around `word`, put together again; else empty."""
    place = list(words).index(word)
    for start in (place, max(0, place - 1)):
        for end in range(start + 2, len(words) + 1):
            parts = words[start:end]
            override = "".join(parts)
            if any(map(_is_complete, parts)):
                break
            if len(parts) == 2 and parts[0] in owners():
                override = "=".join(parts)
            if _is_complete(override):
                return quote(override)
    return ""


def _is_complete(word: str) -> bool:
    closed = all(word.count(a) == word.count(b) for a, b in ("[]", "()", "{}"))
    return closed and OVERRIDE.fullmatch(word) is not None and not word.endswith("=")


@cache
def owners() -> dict[str, dict[str, Any]]:
    """{key: {choice that has it: default}} of all components: {selector.k: {selector=greedy: None, ...}, ...}."""
    table = dict[str, dict[str, Any]]()
    for group in groups():
        for name in choices(group) if group != "experiment" else ():
            for key, default in _keys_of(group, name).items():
                table.setdefault(key, {})[f"{group}={name}"] = default
    return table


def _keys_of(group: str, name: str) -> dict[str, Any]:
    """{key: default} of a choice, with those of the choices of its group that it includes."""
    import yaml

    text = _text(group, name)
    package = re.match("# @package (.+)", text)
    prefix = package[1] if package else group
    table = dict[str, Any]()
    for key, value in yaml.safe_load(text).items():
        if key == "defaults":
            for included in value:
                if included in choices(group):
                    table |= _keys_of(group, included)
        elif prefix == "_global_":
            table |= {f"{key}.{inner}": default for inner, default in value.items()}
        elif key != "_target_":
            table[f"{prefix}.{key}"] = value
    return table


def _text(group: str, name: str) -> str:
    return (folder() / group / f"{name}.yaml").read_text(encoding="utf-8")


def _chooses(word: str, group: str) -> bool:
    """Whether an override chooses the component of another group too, as evaluator=lm_eval does its benchmark."""
    other, _, name = word.lstrip("+").partition("=")
    if other not in groups() or name not in choices(other):
        return False
    return re.search(rf"override /{group}\b", _text(other, name)) is not None


def _spelled(key: str) -> str:
    """What to type for a key: `optimiser=grid optimiser.step` if the default choice lacks it, else the key alone."""
    names = list(owners()[key])
    text = (folder() / "config.yaml").read_text(encoding="utf-8")
    if any(re.search(f"- {name.replace('=', ': ')}\n", text) for name in names):
        return key
    return f"{names[0]} {key}"

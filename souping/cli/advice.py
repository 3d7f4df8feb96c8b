"""What to type in place of an override that cannot be used, by the files of `conf/`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cache
from shlex import quote
from typing import Any

from souping.cli.choice_files import choices, groups
from souping.cli.commands import root_of
from souping.core.system import conf_folder
from souping.core.text import closest

HINTS: Mapping[str, Sequence[str]] = {
    "also": ["extra_benchmarks"],
    "base": ["merge.base_model"],
    "checkpoints": ["pool.candidates"],
    "dataset": ["benchmark.path"],
    "gate": ["expected_mismatch"],
    "items": ["benchmark.path"],
    "limit": ["benchmark.limit", "dry_run"],
    "margin": ["min_gain"],
    "merge.weights": ["optimiser.weights"],
    "models": ["pool.candidates"],
    "output_dir": ["out"],
    "store.path": ["store"],
    "weights": ["optimiser.weights"],
}
"""{word that users try: keys that they may mean}"""
OVERRIDE = re.compile(r"[+~]*[a-z_][\w.]*=.+", re.DOTALL)
VALUE = re.compile(r"[\[{].*|[\d.,]+", re.DOTALL)
"""Values that are no names of choices."""


def key_advice(key: str, known: Iterable[str]) -> str:
    """The end of a message on a key that its component lacks: the choices that have it, or the nearest key.

    `known` are the keys of that component, or of the root.
    """
    group, _, below = key.partition(".")
    parent, dot, name = key.rpartition(".")
    # Other choices of the group have the key: the one in use lacks it.
    if key in owners():
        for word in sys.argv[1:]:
            if _chooses(word, group):
                return f": {word} chooses another {group}: leave one of the two out"
        having = owners()[key]
        added = "one of these" if len(having) > 1 else "it"
        return f": it belongs to {' or '.join(having)}: add {added}"
    if key in HINTS:
        return _meant(HINTS[key])
    if group in groups() and (near := closest(name, known)):
        return _meant([parent + dot + near])
    full_keys = []
    for full_key in owners():
        owner, _, setting = full_key.partition(".")
        # `k` or `selector` for `selector.k`, or a name too many in front of it: `run.selector.k`.
        if key in (owner, setting) or below == full_key:
            full_keys.append(full_key)
    full_keys = full_keys or get_close_matches(key, owners(), n=1, cutoff=0.85)
    if not full_keys and (near := closest(group, known)):
        # Only components have keys of their own.
        full_keys = [near + dot + below if near in groups() else near]
    full_keys = full_keys or list(HINTS.get(name, ()))
    if full_keys:
        return _meant(full_keys)
    return f"; known keys: {', '.join(known) or 'none'}"


def _meant(keys: Iterable[str]) -> str:
    """`; did you mean KEY or KEY?` with what to type for each."""
    return f"; did you mean {' or '.join(map(_spelled, keys))}?"


def value_advice(group: str, value: str) -> str:
    """What to type for a value that stands where the name of a choice belongs: `pool.candidates=[a,...]` for `pool=a`.

    Empty if no choice of the group has a key that must be set.
    """
    keys = []
    for key, defaults in owners().items():
        required = "???" in defaults.values() or key.endswith(".path")
        if key.startswith(f"{group}.") and required:
            keys.append(key)
    spelled = list(map(_spelled, keys))
    # The default choice has such a key: no other choice needs to be typed.
    if set(keys) & set(spelled):
        spelled = [key for key in keys if key in spelled]
    # `pool.candidates` takes a list.
    if "candidates" in "".join(spelled) and not value.startswith("["):
        value = f"[{value},...]"
    return " or ".join(f"{key}={quote(value)}" for key in spelled)


def joined_override(words: Sequence[str], word: str) -> str:
    """The override of which `word` is a part, if a shell split it at spaces, put together and quoted; else empty.

    The override may begin with `word` or with the word before, and ends where its brackets are closed.
    """
    place = list(words).index(word)
    for start in (place, max(0, place - 1)):
        for end in range(start + 2, len(words) + 1):
            parts = words[start:end]
            override = "".join(parts)
            # An override that is whole is no part of another.
            if any(map(_is_complete, parts)):
                break
            # `KEY VALUE` instead of `KEY=VALUE`.
            if len(parts) == 2 and parts[0] in owners():
                override = "=".join(parts)
            if _is_complete(override):
                return quote(override)
    return ""


def _is_complete(word: str) -> bool:
    """Whether a word is `KEY=VALUE` with all of its brackets closed."""
    closed = all(word.count(a) == word.count(b) for a, b in ("[]", "()", "{}"))
    return closed and OVERRIDE.fullmatch(word) is not None and not word.endswith("=")


@cache
def owners() -> dict[str, dict[str, Any]]:
    """{key: {choice that has it: default}} of all components: {selector.k: {selector=greedy: None, ...}, ...}."""
    table = dict[str, dict[str, Any]]()
    for group in groups():
        # Experiments only set keys of other groups.
        if group == "experiment":
            continue
        for name in choices(group):
            for key, default in _keys_of(group, name).items():
                table.setdefault(key, {})[f"{group}={name}"] = default
    return table


def _keys_of(group: str, name: str) -> dict[str, Any]:
    """{key: default} of a choice, with the keys of the choices that it includes."""
    import yaml

    text = _text(group, name)
    package = re.match("# @package (.+)", text)
    prefix = package[1] if package else group
    defaults = dict[str, Any]()
    for key, value in yaml.safe_load(text).items():
        if key == "defaults":
            for included in value:
                if included in choices(group):
                    defaults |= _keys_of(group, included)
        elif prefix == "_global_":
            # Such a file names the groups itself.
            defaults |= {f"{key}.{inner}": default for inner, default in value.items()}
        elif key != "_target_":
            defaults[f"{prefix}.{key}"] = value
    return defaults


def _text(group: str, name: str) -> str:
    """The file of a choice."""
    return (conf_folder() / group / f"{name}.yaml").read_text(encoding="utf-8")


def _chooses(word: str, group: str) -> bool:
    """Whether an override also chooses the component of this `group`, as evaluator=lm_eval chooses its benchmark."""
    chosen_group, _, name = word.lstrip("+").partition("=")
    if chosen_group not in groups() or name not in choices(chosen_group):
        return False
    return re.search(rf"override /{group}\b", _text(chosen_group, name)) is not None


def _spelled(key: str) -> str:
    """What to type for a key: `optimiser=grid optimiser.step` if the chosen component lacks it, else the key alone."""
    names = list(owners().get(key, ()))
    group = key.partition(".")[0]
    # The choice in the root configuration's list of defaults, unless the command line has another.
    text = (conf_folder() / f"{root_of(sys.argv[1:])}.yaml").read_text(encoding="utf-8")
    chosen = [f"{group}={name}" for name in re.findall(rf"- {group}: (.+)", text)]
    for word in sys.argv[1:]:
        if word.startswith(f"{group}=") and word.partition("=")[2] in choices(group):
            chosen = [word]
    if not names or set(chosen) & set(names):
        return key
    return f"{names[0]} {key}"

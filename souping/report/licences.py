"""Which licence a soup can have: the strictest of its ingredients', where that one takes in all the others.

Names are the Hub's (https://huggingface.co/docs/hub/repositories-licenses). This is a reading of the licences' own
compatibility rules for the usual cases and no legal advice; what it does not know becomes `other`, with the list.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

PERMISSIVE = (
    "cc0-1.0", "unlicense", "wtfpl", "pddl", "mit", "isc", "zlib", "bsl-1.0", "ncsa", "postgresql", "bsd",
    "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "ecl-2.0", "afl-3.0", "apache-2.0",
)  # fmt: skip
"""From the loosest to the strictest; each may go into every later one, and into the licences below."""
OWN_TERMS = (
    "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "gemma", "openrail", "openrail++",
    "bigscience-openrail-m", "creativeml-openrail-m", "bigcode-openrail-m", "bigscience-bloom-rail-1.0", "openmdw-1.0",
    "apple-amlr", "deepfloyd", "grok2-community",
)  # fmt: skip
"""Licences that take in permissive ones and nothing else."""
CHAINS = (
    (*PERMISSIVE, "cc-by-4.0", "cc-by-sa-4.0", "gpl-3.0", "agpl-3.0"),
    (*PERMISSIVE, "mpl-2.0", "lgpl-3.0", "gpl-3.0", "agpl-3.0"),
    (*PERMISSIVE, "cc-by-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0"),
    *((*PERMISSIVE, name) for name in OWN_TERMS),
)
"""In a chain, the whole may have the licence of its last member. Two licences of no common chain do not go together."""
NO_DERIVATIVES = re.compile(r"cc-by(-nc)?-nd-.*")
LLAMA = {
    "llama3": ("Llama 3", "Built with Meta Llama 3"),
    "llama3.1": ("Llama", "Built with Llama"),
    "llama3.2": ("Llama", "Built with Llama"),
    "llama3.3": ("Llama", "Built with Llama"),
    "llama4": ("Llama", "Built with Llama"),
}
"""{licence: (what the name of a model made from it must begin with, what must be shown)}, from the licences' 1.b.i."""


@dataclass(frozen=True)
class Licence:
    """A soup's licence as the Hub's card names it; `name` only for `other`. `notes` are for readers of the card."""

    id: str
    name: str = ""
    notes: tuple[str, ...] = ()


def combine(found: Mapping[str, str]) -> Licence:
    """The licence of a soup of ingredients with these licences, {ingredient: the Hub's name, "" where unknown}."""
    names = {value.strip().lower() for value in found.values()}
    strictest = next((name for name in sorted(names) if _takes_in(name, names)), "")
    if strictest:
        notes = [_mixed(found, strictest)] if len(names) > 1 else []
        return Licence(strictest, notes=(*notes, *_llama(names)))
    return Licence("other", _slug(names), (_open(found), *_forbidden(found), *_llama(names)))


def _takes_in(name: str, names: set[str]) -> bool:
    """Whether the whole may have this licence: it is the only one, or a chain holds all and it comes last there."""
    if NO_DERIVATIVES.fullmatch(name) or name in ("", "unknown") or name.startswith("other"):
        return False
    chains = [chain for chain in CHAINS if names <= set(chain)]
    return names == {name} or any(name == max(names, key=chain.index) for chain in chains)


def _slug(names: set[str]) -> str:
    plain = (name.removeprefix("other:") for name in names)
    known = sorted({re.sub(r"[^a-z0-9.+-]+", "-", name).strip("-") or "unknown" for name in plain})
    return "-and-".join(known) or "unknown"


def _listed(found: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({licence or 'unknown'})" for name, licence in found.items())


def _mixed(found: Mapping[str, str], strictest: str) -> str:
    return f"The ingredients' licences are {_listed(found)}; the strictest, {strictest}, holds for the whole."


def _open(found: Mapping[str, str]) -> str:
    unknown = any(value.strip().lower() in ("", "unknown") for value in found.values())
    why = "not all of them are known" if unknown else "none of them is known to take in the others"
    return f"The ingredients' licences are {_listed(found)}; {why}, so all of them hold: read them before you use this."


def _forbidden(found: Mapping[str, str]) -> list[str]:
    owners = [name for name, licence in found.items() if NO_DERIVATIVES.fullmatch(licence.strip().lower())]
    return [f"The licence of {owner} allows nobody to share what is made from it." for owner in owners]


def _llama(names: set[str]) -> list[str]:
    """What the Llama licences ask of whoever shares a model made from theirs."""
    wishes = dict.fromkeys(LLAMA[name] for name in sorted(names) if name in LLAMA)
    return [
        f"{shown}. The licence asks that the name of a model made from it begin with {begin!r} and that these words be "
        "shown."
        for begin, shown in wishes
    ]

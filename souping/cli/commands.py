"""Commands of the command line, and the overrides that they stand for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from souping.core.types import UserError

COMMANDS: Mapping[str, str] = {
    "check": "rehearse a run on five items per category",
    "plan": "show what a run costs and what is missing here, and stop",
    "merge": "average checkpoints by weights that you know, without evaluation",
    "names": "list which tensor of a soup comes from which tensors of the candidates",
    "show": "show answers of a run side by side: what the soup fixed or broke",
    "list": "list the runs below outputs/: date, verdict, look, size on disk",
    "ask": "write the next soups of a run with executor=files, or its report",
    "tell": "take the logs of such soups, in any order",
    "compare": "an honest verdict for any two evaluation logs",
}
"""{command: what it does}; `conf/_hydra.yaml` lists them in the help."""
STANDS_FOR: Mapping[str, tuple[str, ...]] = {
    "check": ("check=true",),
    "plan": ("plan=true",),
    "merge": ("+experiment=merge",),
    "names": ("+experiment=merge", "merge.name_rules=show"),
}
"""{command: the overrides that it stands for}; the other commands have arguments of their own."""
ROOTS = dict.fromkeys(("merge", "rebuild", "merge_soce_8b", "merge_soce_70b"), "merge")
"""{experiment: its root configuration in `conf/`}; that of all others is `config`."""
EXPERIMENT = re.compile(r"\+{0,2}experiment=(.*)", re.DOTALL)
RUN = re.compile(r"\+{0,2}run=(.*)", re.DOTALL)
"""Override that names a finished run."""


def finished_run(words: Sequence[str]) -> str | None:
    """The folder of a finished run that `run=` names, the last of several."""
    return next((match[1] for word in reversed(words) if (match := RUN.fullmatch(word))), None)


def root_of(words: Sequence[str]) -> str:
    """The root configuration that the experiments of a command line belong to."""
    for word in words:
        if match := EXPERIMENT.fullmatch(word):
            for name in re.findall(r"\w+", match[1]):
                if name in ROOTS:
                    return ROOTS[name]
    return "config"


def as_overrides(command: str, words: Sequence[str]) -> list[str]:
    """The words after a command, with the overrides that it stands for.

    Raises:
        UserError: `merge` beside another experiment.
    """
    experiment = next(filter(EXPERIMENT.fullmatch, words), "")
    if command == "names":
        return _names(words, experiment)
    overrides = [word for word in STANDS_FOR[command] if word not in words]
    if command == "merge" and overrides and experiment:
        raise UserError(f"merge and {experiment} are two experiments: leave one of them out")
    return [*words, *overrides]


def _names(words: Sequence[str], experiment: str) -> list[str]:
    """The overrides of `names`: of another `experiment`, with the user's rules, and with any weights."""
    merge, show = STANDS_FOR["names"]
    added = [show]
    if not experiment:
        added.append(merge)
        if not any(word.startswith("optimiser") for word in words):
            added.append("optimiser=uniform")
    # Rules of the user's are applied: merge.name_rules=FILE becomes merge.name_rules=show:FILE.
    return [
        *added,
        *(re.sub(r"^merge\.name_rules=(?!show)", "merge.name_rules=show:", word) for word in words),
    ]


def misplaced(command: str) -> str:
    """What to do about a command that is not the first word."""
    anywhere = ""
    if command in STANDS_FOR:
        anywhere = f", or {' '.join(STANDS_FOR[command])} in any place"
    return f"{command} is a command, which comes first: python -m souping {command} ...{anywhere}"

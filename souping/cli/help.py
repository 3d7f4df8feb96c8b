"""Help and version, which are answered before Hydra is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from souping.core.fields import pick
from souping.core.system import __version__

FLAGS = ("--help", "-h")
COMMANDS: Mapping[str, str] = {
    "compare": "an honest verdict for any two evaluation logs",
    "check": "rehearse a run on five items per category",
    "show": "show answers of a run side by side: what the soup fixed or broke",
}
"""{command: what it does}; `conf/config.yaml` lists them in its help."""
RUN = re.compile(r"\+{0,2}run=(.*)", re.DOTALL)
"""Override that names a finished run."""


def finished_run(words: Sequence[str]) -> str | None:
    """The folder of a finished run that `run=` names, the last of several."""
    return next((match[1] for word in reversed(words) if (match := RUN.fullmatch(word))), None)


def folder() -> Path:
    """The folder of the YAML files: in the installed package, or beside it in a checkout."""
    packaged = Path(__file__).resolve().parents[1] / "conf"
    return packaged if packaged.is_dir() else Path(__file__).resolve().parents[2] / "conf"


def answered(words: Sequence[str]) -> bool:
    """Print what `--version`, `help`, `--help` or `help NAME...` request; False if the words are something else.

    Raises:
        UserError: there is no such group or command.
    """
    if "--version" in words:
        print(f"souping {__version__}")
        return True
    names = [word for word in words if word not in FLAGS][words[:1] == ["help"] :]
    if len(names) == len(words) or not all(word.isidentifier() for word in names):
        return False
    print("\n".join(line for name in names for line in keys(name)) if names else overview())
    return True


def overview() -> str:
    """The help of `conf/config.yaml`, with the groups and their choices."""
    import yaml

    text = str(yaml.safe_load((folder() / "config.yaml").read_text())["hydra"]["help"]["template"])
    lines = "\n".join(f"{name}: {', '.join(choices(name))}" for name in groups())
    return text.replace("$APP_CONFIG_GROUPS", lines).rstrip()


def groups() -> list[str]:
    return sorted(path.name for path in folder().iterdir() if path.is_dir() and not path.name.startswith("_"))


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (folder() / group).glob("*.yaml"))


def keys(group: str) -> Iterator[str]:
    """The choices of a group, and their keys with defaults and remarks as files have them; or what a command does."""
    if group in COMMANDS:
        yield f"usage: python -m souping {group} ...\n\n{COMMANDS[group]}"
        return
    pick(group, [*groups(), *COMMANDS], "help: group or command")
    for name in choices(group):
        yield f"{'+' * (group == 'experiment')}{group}={name}"
        text = (folder() / group / f"{name}.yaml").read_text()
        yield from (f"  {line}" for line in text.splitlines() if not line.strip().startswith(("_", "# @")))
        yield ""

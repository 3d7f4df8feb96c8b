"""The pool: which checkpoints may become ingredients."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from souping.core import Candidate, UserError
from souping.merge.hub.names import parse


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Candidates as paths or Hub names (`org/name@revision`), or as `{name: NAME, path: PATH}`.

    A path's name is its last component, a Hub name's the part behind the slash; a folder that exists goes before a
    model of the Hub.
    """

    candidates: list[str | dict[str, str]]

    def __post_init__(self) -> None:
        self.resolve(at_least=0)

    def resolve(self, at_least: int = 2) -> tuple[Candidate, ...]:
        """Names and folders, not yet opened.

        Raises:
            UserError: fewer than `at_least` candidates, one given twice, or two of one name.
        """
        found: dict[str, Candidate] = {}
        for number, entry in enumerate(self.candidates):
            candidate = _candidate(entry, number)
            twin = found.get(candidate.name)
            if twin and twin.path.resolve() == candidate.path.resolve():
                raise UserError(f"pool.candidates: {candidate.name} is given twice; list each candidate once")
            if twin:
                raise UserError(
                    f"pool.candidates: {twin.path} and {candidate.path} share the name {candidate.name!r}; "
                    "name them apart with {name: NAME, path: PATH}"
                )
            same = [c.name for c in found.values() if c.path.resolve() == candidate.path.resolve()]
            if same:
                raise UserError(f"pool.candidates: {same[0]} and {candidate.name} are the same folder; list it once")
            found[candidate.name] = candidate
        if len(found) < at_least:
            raise UserError(f"pool.candidates has {len(found)} candidate(s): souping needs at least two")
        return tuple(found.values())


def _candidate(entry: str | dict[str, str], number: int) -> Candidate:
    if isinstance(entry, dict):
        if set(entry) != {"name", "path"} or not all(isinstance(v, str) and v for v in entry.values()):
            raise UserError(f"pool.candidates[{number}] must be a path or {{name: NAME, path: PATH}}, not {entry}")
        return Candidate(name=entry["name"], path=Path(entry["path"]).expanduser())
    if not isinstance(entry, str) or not entry.strip():
        raise UserError(f"pool.candidates[{number}] must be a path or {{name: NAME, path: PATH}}, not {entry!r}")
    path = Path(entry).expanduser()
    online = parse(entry)
    name = online.name if online else path.name or path.resolve().name
    return Candidate(name=name.split("@")[0], path=path)

"""Looks at the report items of runs of ours: a comparison of them goes into the ledger of their store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from souping.core.fields import text_of
from souping.core.files import expanded, seen_from
from souping.core.text import first_line
from souping.core.types import Json, UserError, digest, entries, part
from souping.logs.common import read_object
from souping.logs.match import Matched
from souping.logs.records import Log


def looks_of(
    logs: Mapping[str, Sequence[Log]], matched: Matched, settings: Sequence[Json], store: str | Path | None
) -> tuple[int, list[str]]:
    """(the look that this comparison is, what to tell about it); look 0 if the logs are not of runs of ours.

    `settings` are what else the claim is about: margins and weights.

    Raises:
        UserError: the store that was named is not there.
    """
    runs = [log for several in logs.values() for log in several if log.harness == "souping"]
    if not runs:
        return 0, []
    if store and not expanded(store).is_file():
        raise UserError(f"--store {store}: there is no such file")
    path = expanded(store) if store else _store_of(runs[0].path)
    if path is None:
        return 0, ["The store of these runs is not here (--store FILE): earlier looks at their items are not counted."]
    from souping.pipeline.ledger import Ledger
    from souping.pipeline.store import Store

    compared = {item for found in matched.metrics.values() for item in found[0].items}
    metrics = [metric for log in runs for task in log.tasks.values() for metric in task.metrics.values()]
    identities = {a.prompt_hash for metric in metrics for a in metric.answers if a.item in compared}
    first, *others = map(_recipe_of, runs)
    claim = digest(["comparison", first, sorted(others), list(settings), sorted(identities)])
    with Store(path) as ledger:
        return Ledger(ledger).open_comparison(claim, identities).number, []


def _recipe_of(run: Log) -> str:
    """Identity of the model of a log."""
    rows = entries(read_object(run.path / "report.json"), "rows")
    return next((str(row.get("recipe_id")) for row in rows if row.get("name") == run.model), run.model)


def _store_of(run_dir: Path) -> Path | None:
    """The store that the run's configuration names."""
    import yaml

    config = run_dir / "config.yaml"
    try:
        settings = yaml.safe_load(text_of(config)) if config.is_file() else None
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{config}: not the configuration of a run: {first_line(error)}") from error
    named = part(settings, "store").get("path") if isinstance(settings, dict) else None
    if not isinstance(named, str):
        return None
    return seen_from(run_dir, expanded(named))

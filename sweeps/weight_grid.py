"""A Hydra multirun over the weight grid: one job for each point of the simplex.

    python sweeps/weight_grid.py 3                              print the command for 3 ingredients
    python sweeps/weight_grid.py 3 --launch                     run it
    python sweeps/weight_grid.py 3 --form hydra                 the same as a Hydra overlay (sweeps/conf/sweep)
    python sweeps/weight_grid.py 3 --form wandb                 the same as a W&B sweep file
    python sweeps/weight_grid.py 3 --launch seed=1 tracker=wandb   anything else goes to every job

The points are those of `optimiser=grid`: the paper's grid (arXiv 2511.13254v1, section 3), uniform, and the single
ingredients, which are the K best candidates (`selector=topk`). Jobs stop after the search, so the test split stays
closed while weights are compared; run the best weights once more without `stop_after` for the report.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence

from souping.core.types import UserError, Weights
from souping.search.points import Grid

SETTINGS = {"selector": "topk", "optimiser": "fixed"}


def written(weights: Weights) -> str:
    """A point as Hydra reads it; floats keep all their digits, so that uniform is the search's own uniform."""
    return f"[{','.join(repr(float(w)) for w in weights)}]"


def overrides(size: int, points: Sequence[Weights]) -> list[str]:
    """The overrides of the multirun for K = `size`."""
    fixed = [f"{group}={choice}" for group, choice in SETTINGS.items()]
    return [
        *fixed,
        f"selector.k={size}",
        "stop_after=search",
        f"optimiser.weights={','.join(map(written, points))}",
    ]


def command(size: int, points: Sequence[Weights], extra: Sequence[str]) -> list[str]:
    """The multirun, word by word."""
    return [
        sys.executable,
        "-m",
        "souping",
        "-m",
        "+experiment=bfcl",
        *overrides(size, points),
        *extra,
    ]


def hydra_overlay(size: int, points: Sequence[Weights]) -> str:
    """The multirun as an overlay for `--config-dir`."""
    lines = [
        "# @package _global_",
        f"# Written by: python sweeps/weight_grid.py {size} --form hydra",
        f"# {len(points)} jobs, one for each point: uniform, {size} single ingredients, the rest of the paper's grid.",
        "#   python -m souping --config-dir sweeps/conf +experiment=bfcl +sweep=weight_grid",
        "defaults:",
        *(f"  - override /{group}: {choice}" for group, choice in SETTINGS.items()),
        f"selector:\n  k: {size}",
        "stop_after: search     # the test split stays closed while weights are compared",
        "hydra:\n  mode: MULTIRUN\n  sweeper:\n    params:",
        "      optimiser.weights: >-",
    ]
    shown = [written(point) for point in points]
    return (
        "\n".join([*lines, *(f"        {text}," for text in shown[:-1]), f"        {shown[-1]}"])
        + "\n"
    )


def wandb_sweep(size: int, points: Sequence[Weights]) -> str:
    """The multirun as a W&B sweep file."""
    head = [
        f"# Written by: python sweeps/weight_grid.py {size} --form wandb",
        "# Every point of the weight grid as a W&B run. See docs/large-runs.md.",
        "program: souping          # the agent asks for the key; what it runs is `command`",
        "method: grid",
        "metric: {name: best, goal: maximize}    # the objective on the search split",
        "command:",
        *(
            f"  - {word}"
            for word in (
                "${env}",
                "python",
                "-m",
                "souping",
                "+experiment=bfcl",
                "${args_no_hyphens}",
            )
        ),
        "parameters:",
        "  tracker: {value: wandb}",
        "  stop_after: {value: search}",
        *(f"  {group}: {{value: {choice}}}" for group, choice in SETTINGS.items()),
        f"  selector.k: {{value: {size}}}",
        "  optimiser.weights:\n    values:",
    ]
    return "\n".join([*head, *(f"      - {written(point)}" for point in points)]) + "\n"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("size", type=int, metavar="K", help="how many ingredients")
    made.add_argument("--step", type=float, default=0.1)
    made.add_argument("--form", choices=("command", "hydra", "wandb"), default="command")
    made.add_argument(
        "--launch", action="store_true", help="run the multirun instead of printing it"
    )
    made.add_argument(
        "overrides", nargs="*", help="further overrides for every job (form `command` only)"
    )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0, 2 for a user error, or that of the multirun."""
    options = parser().parse_intermixed_args(arguments)
    try:
        points = _points(options)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    words = command(options.size, points, options.overrides)
    if options.launch:
        return subprocess.run(words, check=False).returncode
    if options.form == "command":
        print(shlex.join(["python", *words[1:]]))
    else:
        print(
            {"hydra": hydra_overlay, "wandb": wandb_sweep}[options.form](options.size, points),
            end="",
        )
    return 0


def _points(options: argparse.Namespace) -> list[Weights]:
    if options.size < 2:
        raise UserError(
            f"K={options.size} must be at least 2: one ingredient leaves nothing to weigh"
        )
    if options.form != "command" and (options.launch or options.overrides):
        raise UserError(
            f"--form {options.form} prints a file: leave --launch and further overrides out"
        )
    return Grid(step=options.step).known_points(options.size)


if __name__ == "__main__":
    raise SystemExit(main())

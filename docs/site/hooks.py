"""The site beside the files: pages that lie outside `docs/`, pages made from the code, and the links between them.

mkdocs calls the functions whose names begin with `on_`. The markdown files stay readable where they lie.
"""

from __future__ import annotations

import ast
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = (
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "*/README.md",
    "sweeps/paper/*.md",
    "benchmarks/results/*.md",
)
"""Pages of the repository that are part of the site, below `project/`."""
RESULTS = ROOT / "benchmarks" / "results"
LINK = re.compile(r"(\[[^\]]*\]\()([^)\s]+)(\))")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the parts of the navigation that are lists of files."""
    lists = {
        "Decisions": [f"decisions/{path.name}" for path in sorted((ROOT / "docs" / "decisions").glob("*.md"))],
        "Measured": [f"project/benchmarks/results/{path.name}" for path in sorted(RESULTS.glob("*.md"))],
    }
    for section in config.nav or []:
        for title in set(lists) & set(section if isinstance(section, dict) else ()):
            section[title] += lists[title]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what does not lie in `docs/`."""
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            place = path.relative_to(ROOT).as_posix()
            if not place.startswith(("docs/", "node_modules/")):
                files.append(File.generated(config, f"project/{place}", content=path.read_text(encoding="utf-8")))
    made = {"configuration": configuration(), "python": python(), "protocols": protocols()}
    for name, text in made.items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links as they are in the repository, turned into links of the site; to code they become text."""
    here = page.file.src_uri
    of_repository = here.removeprefix("project/") if here.startswith("project/") else f"docs/{here}"

    def turned(match: re.Match[str]) -> str:
        target, _, anchor = match[2].partition("#")
        if not target or re.match(r"[a-z]+:", target):
            return match[0]
        place = posixpath.normpath(posixpath.join(posixpath.dirname(of_repository), target))
        page_of = next((p for p in site_paths(place) if files.get_file_from_path(p)), None)
        if page_of is None:
            return match[1][1:-2] if (ROOT / place).exists() else match[0]
        relative = posixpath.relpath(page_of, posixpath.dirname(here) or ".")
        return f"{match[1]}{relative}{'#' + anchor if anchor else ''}{match[3]}"

    return LINK.sub(turned, markdown)


def site_paths(place: str) -> list[str]:
    """Where a path of the repository may stand on the site."""
    if place.startswith("docs/"):
        inner = place.removeprefix("docs/")
        return [inner, f"{inner.rstrip('/')}/README.md"]
    return [f"project/{place}", f"project/{place.rstrip('/')}/README.md"]


def configuration() -> str:
    """Page of the configuration groups: each choice as its YAML stands, with its comments."""
    parts = ["# Keys of the configuration", "", "Every group and its choices, as the files have them.", ""]
    conf = ROOT / "conf"
    parts += ["## Root keys", "", "```yaml", (conf / "config.yaml").read_text().strip(), "```", ""]
    for group in sorted(path for path in conf.iterdir() if path.is_dir() and path.name != "experiment"):
        parts += [f"## {group.name}", ""]
        for choice in sorted(group.glob("*.yaml")):
            parts += [f"### {group.name}={choice.stem}", "", "```yaml", choice.read_text().strip(), "```", ""]
    return "\n".join(parts)


def python() -> str:
    """Page of what `import souping` gives."""
    tree = ast.parse((ROOT / "souping" / "__init__.py").read_text())
    rooms = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "_ROOMS"
    )
    lines = ["# Python", "", "What `import souping` gives; each name is loaded when it is first asked for.", ""]
    for room, names in rooms.items():
        if room == "souping.core.types":
            lines += [f"`{name}`: see [{name}](protocols.md#{room}.{name}).\n" for name in names]
        else:
            lines += [f"::: {room}.{name}\n" for name in names if name != "__version__"]
    return "\n".join(lines)


def protocols() -> str:
    """Page of the nouns and of the protocols of exchangeable parts."""
    lines = [
        "# Protocols",
        "",
        "What parts of your own subclass ([how](../extending.md)), and the nouns they hand on.",
        "",
    ]
    modules = ("souping.core.protocols", "souping.core.merge_protocols", "souping.core.types")
    return "\n".join([*lines, *(f"::: {module}\n" for module in modules)])

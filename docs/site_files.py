"""Files of the site that `mkdocs build` makes: README, all files that its links lead to, and the docstrings.

The site has the folders of the repository, so that every relative link leads to the same file in both.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import make_api
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:)([^)\s#]+)(#[^)\s]*)?\)")
CSS = ".wy-table-responsive table td, .wy-table-responsive table th { white-space: normal }"
"""Cells of a table wrap. The theme's own scroll."""
API = "# Python\n\nClasses and functions for scripts and for components of your own.\n\n"


def slug(heading: str, separator: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", separator)


def targets(page: Path) -> Iterator[Path]:
    """Files and folders that the relative links of a page lead to."""
    for _, _, target, _ in LINK.findall(page.read_text(encoding="utf-8")):
        yield (page.parent / target).resolve()


def linked_files() -> list[Path]:
    """README and the files that can be reached from it by relative links."""
    found = [ROOT / "README.md"]
    for path in found:
        if path.suffix == ".md":
            files = (target for target in targets(path) if target.is_file())
            found += [file for file in dict.fromkeys(files) if file not in found]
    return found


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    config.mdx_configs["toc"]["slugify"] = slug
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The linked files at their places in the repository, and the pages of the docstrings in `api/`."""
    # The theme's files stay.
    made = [file for file in files if file.src_dir != config.docs_dir]
    for path in linked_files():
        place = path.relative_to(ROOT).as_posix()
        made.append(File.generated(config, place, abs_src_path=str(path)))
    folder = Path(tempfile.mkdtemp())
    make_api.write(folder)
    for path in sorted(folder.rglob("*.*")):
        place = f"api/{path.relative_to(folder).as_posix()}"
        made.append(File.generated(config, place, content=path.read_bytes()))
    made.append(File.generated(config, "site.css", content=CSS))
    links = [f"- [{name}](api/{name.replace('.', '/')}.html)" for name in make_api.MODULES]
    made.append(File.generated(config, "python.md", content=API + "\n".join(links)))
    return Files(made)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page without links to folders, which a site does not list: their text stays."""
    source = ROOT / page.file.src_uri

    def without_folder(match: re.Match[str]) -> str:
        is_folder = (source.parent / match[3]).is_dir()
        return match[2] if is_folder else match[0]

    return LINK.sub(without_folder, markdown)

"""Hooks of the documentation site: documents beside docs/ become pages, links lead to pages or to the repository."""

import logging
import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
PAGES = {  # document of the repository -> page of the site
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/README.md": "benchmarks.md",
    "calibration/README.md": "calibration.md",
    "calibration/reference/README.md": "reference-checkpoint.md",
}
SOURCES = {page: source for source, page in PAGES.items()}
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)  # the markers of generated blocks
CODE = re.compile(r"(?ms)^```.*?^```|`[^`\n]*`")
LINK = re.compile(r'(?P<before>\]\(|\b(?:src|srcset|href)=")(?!https?:|mailto:|#)(?P<path>[^)#"\s]+)')

log = logging.getLogger("mkdocs.hooks.repository")  # in strict mode a warning fails the build


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the documents beside docs/."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Remove comments, and rewrite links outside of code."""
    source = ROOT / SOURCES.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    text, parts, position = COMMENT.sub("", markdown), [], 0
    for code in CODE.finditer(text):
        parts += [_rewrite(text[position : code.start()], source), code[0]]
        position = code.end()
    return "".join([*parts, _rewrite(text[position:], source)])


def _rewrite(text: str, source: Path) -> str:
    return LINK.sub(lambda found: found["before"] + _target(found["path"], source), text)


def _target(path: str, source: Path) -> str:
    """Return the page of a file, or its address in the repository."""
    target = Path(os.path.normpath(source.parent / path)).relative_to(ROOT).as_posix()
    if not (ROOT / target).exists():
        log.warning("%s links to `%s`, which does not exist", source.relative_to(ROOT), path)
    if target in PAGES:
        return PAGES[target]
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    return f"https://github.com/mcpmq/mcpmq/{'tree' if (ROOT / target).is_dir() else 'blob'}/main/{target}"

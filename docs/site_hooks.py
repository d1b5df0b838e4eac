"""What mkdocs does besides.

README.md is the first page, notebook.ipynb a page with the outputs that it holds; links to files outside of
docs/ are plain text.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent
_ON_THE_SITE = (".md", ".ipynb", ".svg", ".png")
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Adds README.md as `index.md`, and notebook.ipynb as `notebook.md` and the pictures of its outputs."""
    text = (ROOT / "README.md").read_text()
    files.append(File.generated(config, "index.md", content=relinked(text, "docs/")))
    page, outputs = MarkdownExporter().from_filename(ROOT / "docs" / "notebook.ipynb")
    files.append(File.generated(config, "notebook.md", content=page))
    for name, content in outputs["outputs"].items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Changes the links of a page of docs/."""
    return markdown if page.file.src_uri == "index.md" else relinked(markdown, "")


def relinked(text: str, folder: str) -> str:
    """A page with links that hold on the site.

    Args:
        text: Markdown, of a file whose links to pages begin with `folder`.
        folder: `docs/` for the README, empty for the pages in docs/.
    """

    def changed(match: re.Match) -> str:
        name, target = match.groups()
        if target.startswith(("#", "https://", "http://")):
            return match[0]
        path, _, anchor = target.partition("#")
        if path == "../README.md":
            path = "index.md"
        elif path.startswith(folder) and path.endswith(_ON_THE_SITE) and ".." not in path:
            path = path.removeprefix(folder).replace(".ipynb", ".md")
        else:
            return name
        return f"[{name}]({path}{'#' + anchor if anchor else ''})"

    return _LINK.sub(changed, text).replace(f"]({folder}", "](") if folder else _LINK.sub(changed, text)

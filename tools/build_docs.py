"""Build the documentation site with Zensical from docs/, the READMEs and the docstrings (`make docs`).

    python -m tools.build_docs site

The pages are written to be read in the repository, where they link to source files and recipes. The site is therefore
built from a copy. In it, README.md is the home page, every linked file has a page of its own, and so has every public
package, with its docstrings. A warning of Zensical or mkdocstrings is an error, and so is a link that leads nowhere.
"""

from __future__ import annotations

import ast
import json
import os
import posixpath
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tools import make_parser
from tools.folder_graph import draw_graph

ROOT = Path(__file__).resolve().parent.parent
# Pages from outside docs/, and their names in the site.
OTHER_PAGES = {
    "README.md": "index.md",
    "README.zh-CN.md": "zh.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "examples/finetune_folder.ipynb": "notebook.md",
}
IMAGES = (".png", ".svg")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".cff": "yaml", ".toml": "toml", ".sbatch": "bash"}
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#\s]+)")
FENCE = re.compile(r"(^(`{3,}).*?^\2$)", re.DOTALL | re.MULTILINE)
MERMAID = re.compile(r"^```mermaid\ngraph TD\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class SitePages:
    """The pages of the site as Markdown, written to a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        docs = {path.relative_to(ROOT).as_posix(): path.name for path in sorted((ROOT / "docs").glob("*.md"))}
        self.names = OTHER_PAGES | docs
        self._shown: set[str] = set()  # files that have a page because another page links to them

    def write(self) -> None:
        """Write all pages, and the images that they show."""
        for source, name in self.names.items():
            self._write(name, self.convert(source, name))
        for package, members in reference_members().items():
            self._write(f"reference/{package}.md", reference_page(package, members))

    def convert(self, source: str, name: str) -> str:
        """Return the text of a page of the repository, with links that work at its place in the site.

        Raises:
            FileNotFoundError: a link leads nowhere.
        """
        path = ROOT / source
        text = notebook_markdown(path) if path.suffix == ".ipynb" else path.read_text(encoding="utf-8")
        text = MERMAID.sub(lambda match: draw_graph(re.findall(r"(\w+) --> (\w+)", match[1])), text)
        parts = FENCE.split(text)  # text, block, its fence, text, …

        def site_link(match: re.Match[str]) -> str:
            target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
            return posixpath.relpath(self._add(target, source), posixpath.dirname(name) or ".")

        return "".join(LINK.sub(site_link, part) if i % 3 == 0 else part for i, part in enumerate(parts) if i % 3 != 2)

    def _add(self, target: str, source: str) -> str:
        """Return the place of a file of the repository in the site. Copy an image, and write a page for other files."""
        path = ROOT / target
        if target in self.names:
            return self.names[target]
        if not path.exists():
            raise FileNotFoundError(f"{source} links to {target}, which does not exist. Correct the link")
        if path.suffix in IMAGES:
            copy = self.folder / target.removeprefix("docs/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
            return target.removeprefix("docs/")
        page = f"source/{target}.md"
        if target not in self._shown:
            self._shown.add(target)
            self._write(page, self._file_page(target, page))
        return page

    def _file_page(self, target: str, page: str) -> str:
        """Return a page that shows a file, or the links to the files of a folder."""
        path = ROOT / target
        head = f"---\nsearch:\n  exclude: true\n---\n\n# {target}\n\n"
        if path.is_dir():
            names = [child.relative_to(ROOT).as_posix() for child in sorted(path.iterdir()) if child.is_file()]
            links = [posixpath.relpath(self._add(name, target), posixpath.dirname(page)) for name in names]
            return head + "".join(f"* [{name}]({link})\n" for name, link in zip(names, links, strict=True))
        language = LANGUAGES.get(path.suffix, "text")
        return f'{head}`````{language} linenums="1"\n{path.read_text(encoding="utf-8").rstrip()}\n`````\n'

    def _write(self, name: str, text: str) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def notebook_markdown(path: Path) -> str:
    """Return the cells of a notebook as Markdown, without outputs."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    texts = [(cell["cell_type"], "".join(cell["source"])) for cell in cells]
    return "\n\n".join(f"```python\n{text}\n```" if kind == "code" else text for kind, text in texts) + "\n"


def public_names() -> Iterator[tuple[str, list[str]]]:
    """Yield every package that has `__all__`, with the names in it that are not modules, the root package first."""
    for path in sorted((ROOT / "acmix_zoo").rglob("__init__.py"), key=lambda path: (len(path.parts), path)):
        package, modules, exported = ".".join(path.parent.relative_to(ROOT).parts), set(), []
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and node.module == package:
                modules |= {alias.name for alias in node.names}
            elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                exported = ast.literal_eval(node.value)
        if exported:
            yield package, [name for name in exported if name not in modules]


def reference_members() -> dict[str, list[str]]:
    """Return the public names that the page of each package documents: those that the root package does not export."""
    (root, names), *packages = public_names()
    return {root: names, **{package: [name for name in found if name not in names] for package, found in packages}}


def reference_page(package: str, members: list[str]) -> str:
    """Return the page of the API reference for a package. mkdocstrings replaces the `:::` block."""
    root, names = next(public_names())
    shared = [name for name in dict(public_names())[package] if package != root and name in names]
    links = ", ".join(f"[`{name}`]({root}.md#{root}.{name})" for name in shared)
    remark = f"Documented with the root package: {links}.\n\n" if shared else ""
    # mkdocstrings would document the module in place of a function with the same name
    hidden = [name for name in members if (ROOT / package.replace(".", "/") / f"{name}.py").is_file()]
    listed = "".join(f"        - {name}\n" for name in members if name not in hidden)
    blocks = [f"::: {package}\n    options:\n      members:\n{listed}"]
    heading = "    options:\n      show_root_heading: true\n      show_root_toc_entry: true\n"
    blocks += [f"::: {package}.{name}.{name}\n{heading}" for name in hidden]
    return f"# {package}\n\n{remark}" + "\n".join(blocks)


def build(site: Path) -> None:
    """Build the site in `site`, which is replaced.

    Raises:
        SystemExit: the folder exists and is not a site, or Zensical or mkdocstrings printed a warning.
    """
    if site.exists() and not (site / "sitemap.xml").is_file():
        sys.exit(
            f"{site} exists and is not a site. Expected a new folder or one with a sitemap.xml. Choose another folder"
        )
    with tempfile.TemporaryDirectory() as temporary:
        project = Path(temporary)
        SitePages(project / "docs").write()
        shutil.copytree(ROOT / "docs/assets", project / "docs/assets")
        shutil.copy(ROOT / "zensical.toml", project)
        (project / "acmix_zoo").symlink_to(ROOT / "acmix_zoo")  # the source of the docstrings
        command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
        done = subprocess.run(command, cwd=project, capture_output=True, text=True, env={**os.environ, "NO_COLOR": "1"})
        printed = done.stdout + done.stderr
        if done.returncode or re.search(r"warning|error", printed, re.IGNORECASE):  # mkdocstrings only logs them
            sys.exit(printed)
        if site.exists():
            shutil.rmtree(site)
        shutil.move(project / "site", site)


if __name__ == "__main__":
    parser = make_parser("build_docs", __doc__)
    parser.add_argument("site", type=Path, metavar="FOLDER", help="folder of the site; replaced if it exists")
    folder = parser.parse_args().site
    build(folder)
    print(f"Built the site. To read it: python -m http.server -d {folder}")

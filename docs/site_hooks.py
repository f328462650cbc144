"""What MkDocs adds to the pages: the API and CLI reference, pages from the project's root, links to the repository."""

from __future__ import annotations

import ast
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]

PACKAGES = {
    "lightning_s3t": ["lightning_s3t"],
    "methods": ["lightning_s3t.methods"],
    "metrics": ["lightning_s3t.metrics"],
    "metrics_functional": ["lightning_s3t.metrics.functional"],
    "comparison": ["lightning_s3t.comparison"],
    "plan": ["lightning_s3t.plan"],
    "store": ["lightning_s3t.store"],
    "service": ["lightning_s3t.service"],
    "federated": ["lightning_s3t.federated"],
    "reporting": ["lightning_s3t.reporting"],
    "serving": ["lightning_s3t.serving"],
    "tuning": ["lightning_s3t.tuning"],
    "zoo": ["lightning_s3t.zoo.models", "lightning_s3t.zoo.datamodules", "lightning_s3t.zoo.demo"],
}
"""The page of the reference for each package whose names are public."""

FROM_ROOT = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md", "security.md": "SECURITY.md"}
"""Pages that are files of the project's root."""

_LINK = re.compile(r"(?<!\!)\[([^\]]*)\]\(((?:\.\./)+[^)#\s]+)(#[^)\s]*)?\)")


def public_names(package: str) -> list[str]:
    """Return the names in a package's `__all__`, without importing it.

    Args:
        package: Its dotted name.
    """
    folder = ROOT.joinpath(*package.split("."))
    file = folder / "__init__.pyi" if (folder / "__init__.pyi").exists() else folder / "__init__.py"
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    raise ValueError(f"{file} has no `__all__`.")


def home_of(package: str, name: str) -> str:
    """Return the module that a public name is imported from, without importing it.

    Args:
        package: The package that exports it.
        name: The name.
    """
    folder = ROOT.joinpath(*package.split("."))
    file = next(path for path in (folder / "__init__.pyi", folder / "__init__.py") if path.exists())
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ImportFrom) and name in {alias.asname or alias.name for alias in node.names}:
            module = f"{package}.{node.module}" if node.level else str(node.module)
            is_package = ROOT.joinpath(*module.split("."), "__init__.py").exists()
            return home_of(module, name) if is_package and module != package else module
    return package


def package_summary(package: str) -> str:
    """Return the docstring of a package.

    Args:
        package: Its dotted name.
    """
    tree = ast.parse(ROOT.joinpath(*package.split("."), "__init__.py").read_text())
    return ast.get_docstring(tree) or ""


def reference_pages() -> Iterator[tuple[str, str]]:
    """Yield the path and the Markdown of each page of the reference.

    A name that several packages export is described on the first page that has it; the others link there.
    """
    described: dict[tuple[str, str], str] = {}
    for page, packages in PACKAGES.items():
        parts = [f"# {' and '.join(f'`{package}`' for package in packages)}" if len(packages) == 1 else f"# `{page}`"]
        for package in packages:
            if len(packages) > 1:
                parts.append(f"**`{package}`**")
            parts.append(package_summary(package))
            for name in public_names(package):
                known = described.setdefault((home_of(package, name), name), f"{package}.{name}")
                if known == f"{package}.{name}":
                    parts.append(f"::: {known}")
                else:
                    parts.append(f"`{name}` is [`{known}`][{known}].")
        yield f"reference/{page}.md", "\n\n".join(parts) + "\n"
    yield "reference/errors.md", "# Errors\n\n::: lightning_s3t.errors\n    options:\n      show_root_heading: false\n"
    yield "reference/cli.md", cli_page()


def cli_page() -> str:
    """Return the page of all commands, from the application itself."""
    from lightning_s3t.cli.main import make_app

    commands = make_app().generate_docs(output_format="markdown", recursive=True, heading_level=1)
    note = (
        "`fit`, `validate`, `test` and `predict` are Lightning's: see [the command line](../command-line.md). "
        "`s3t fit --help` lists what a config can have. Exit codes: 0; 1 if a check has failed; 2 after an error, "
        "which goes to standard error; 130 after Ctrl-C."
    )
    title, _, rest = commands.partition("\n")
    return f"{title}\n\n{note}\n{rest}"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Called when MkDocs has found the pages: adds those that are made from code and from the project's root.

    Args:
        files: The pages.
        config: The settings of the site.
    """
    from mkdocs.structure.files import File

    for path, text in reference_pages():
        files.append(File.generated(config, path, content=text))
    for path, source in FROM_ROOT.items():
        files.append(File.generated(config, path, content=_from_root((ROOT / source).read_text())))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Called for each page: links that leave the documentation go to the repository, or lose their link.

    Args:
        markdown: The page.
        page: Where it is.
        config: The settings of the site.
        files: All pages.
    """
    here = posixpath.dirname(f"docs/{page.file.src_uri}")

    def replace(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        path = posixpath.normpath(posixpath.join(here, target))
        if path.startswith("docs/"):
            return match[0]
        if not (ROOT / path).exists():
            raise ValueError(f"{page.file.src_uri} links to {target}, which does not exist.")
        if not config.repo_url:
            return text
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"[{text}]({config.repo_url.rstrip('/')}/{kind}/main/{path}{anchor})"

    return _LINK.sub(replace, markdown)


def _from_root(text: str) -> str:
    """Return a file of the root as a page of docs/: its links into docs/ are beside it, others one folder up."""

    def replace(match: re.Match[str]) -> str:
        text, target = match[1], match[2]
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        names = {source: path for path, source in FROM_ROOT.items()}
        if target in names:
            return f"[{text}]({names[target]})"
        return f"[{text}]({target.removeprefix('docs/') if target.startswith('docs/') else f'../{target}'})"

    return re.sub(r"\[([^\]]*)\]\(([^)\s]+)\)", replace, text)

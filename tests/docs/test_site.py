"""The site, as far as it can be checked without building it: every page is in the navigation, and every link has a target."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from docs.site_hooks import FROM_ROOT, PACKAGES, public_names, reference_pages
from tests.docs.pages import DOCS, ROOT, pages

GENERATED = {*FROM_ROOT, *(f"reference/{page}.md" for page in [*PACKAGES, "errors", "cli"])}
_LINK = re.compile(r"\]\(([^)\s]+)\)")


class _Loader(yaml.SafeLoader):
    """Reads the tags of MkDocs as what they hold."""


_Loader.add_constructor("!ENV", lambda loader, node: loader.construct_sequence(node))


def in_navigation() -> set[str]:
    def leaves(node: Any) -> Iterator[str]:
        if isinstance(node, str):
            yield node
        else:
            for part in node.values() if isinstance(node, dict) else node:
                yield from leaves(part)

    return set(leaves(yaml.load((ROOT / "mkdocs.yml").read_text(), _Loader)["nav"]))


def anchors_of(page: Path) -> set[str]:
    """The anchors of a page's headings, as Python-Markdown makes them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    found = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        plain = unicodedata.normalize("NFKD", heading.replace("`", "")).encode("ascii", "ignore").decode()
        found.add(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower()))
    return found


def broken_links(page: Path) -> Iterator[str]:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in _LINK.findall(text):
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = (page.parent / path).resolve() if path else page
        if target.is_relative_to(DOCS) and str(target.relative_to(DOCS)) in GENERATED:
            continue
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors_of(target)):
            yield link


def test_every_page_is_in_the_navigation() -> None:
    written = {str(page.relative_to(DOCS)) for suffix in ("md", "ipynb") for page in DOCS.rglob(f"*.{suffix}")}
    assert in_navigation() == written | GENERATED


@pytest.mark.parametrize("page", [*pages(), ROOT / "SECURITY.md", ROOT / "CHANGELOG.md", ROOT / "tests" / "README.md"])
def test_every_link_has_a_target(page: Path) -> None:
    assert list(broken_links(page)) == []


def test_every_public_name_is_in_the_reference() -> None:
    text = "\n".join(page for _, page in reference_pages())
    for package in [package for packages in PACKAGES.values() for package in packages]:
        missing = [name for name in public_names(package) if not re.search(rf"(\.|`){name}(`|$)", text, re.MULTILINE)]
        assert missing == [], package


def test_every_package_with_public_names_has_a_page() -> None:
    listed = {package for packages in PACKAGES.values() for package in packages}
    # their names are in `lightning_s3t`, are the command's, or are for this project alone
    elsewhere = {"callbacks", "cli", "tuning.layer_detection"}
    found = set()
    for file in (ROOT / "lightning_s3t").rglob("__init__.py"):
        if "\n__all__ = [" in file.read_text() or file.with_suffix(".pyi").exists():
            found.add(".".join(file.parent.relative_to(ROOT).parts))
    assert found == listed | {f"lightning_s3t.{package}" for package in elsewhere}

"""Version, changelog and citation name one release."""

from __future__ import annotations

import re
import runpy
import shutil
from pathlib import Path

import pytest

from tests.docs.pages import ROOT

differences = runpy.run_path(str(ROOT / ".ci" / "check_release.py"))["differences"]
[VERSION] = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)


def test_the_version_is_that_of_changelog_and_citation() -> None:
    assert differences(f"v{VERSION}") == []


@pytest.mark.parametrize("file", ["pyproject.toml", "CHANGELOG.md", "CITATION.cff"])
def test_a_file_with_another_version_is_named(file: str, tmp_path: Path) -> None:
    for name in ("pyproject.toml", "CHANGELOG.md", "CITATION.cff"):
        shutil.copy(ROOT / name, tmp_path)
    text = (tmp_path / file).read_text()
    (tmp_path / file).write_text(text.replace(VERSION, "9.9.9"))
    [difference] = differences(f"v{VERSION}", tmp_path)
    assert difference.startswith(file)

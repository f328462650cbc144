"""Fails unless a tag, the project's version, the changelog and CITATION.cff name the same release.

Usage: check_release.py v0.2.0
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def differences(tag: str, root: Path = ROOT) -> list[str]:
    """Return what does not agree with a tag.

    Args:
        tag: The tag, "v" and the version.
        root: The project.
    """
    version = tag.removeprefix("v")
    found = []
    [declared] = re.findall(r'^version = "(.+)"$', (root / "pyproject.toml").read_text(), re.MULTILINE)
    if declared != version:
        found.append(f"pyproject.toml has version {declared}.")
    if not re.search(
        rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d$", (root / "CHANGELOG.md").read_text(), re.MULTILINE
    ):
        found.append(f'CHANGELOG.md has no heading "## [{version}] - YYYY-MM-DD".')
    if f"\nversion: {version}\n" not in (root / "CITATION.cff").read_text():
        found.append("CITATION.cff has another version.")
    return found


if __name__ == "__main__":
    wrong = differences(sys.argv[1])
    for difference in wrong:
        print(f"{sys.argv[1]}: {difference}", file=sys.stderr)
    sys.exit(bool(wrong))

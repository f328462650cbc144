"""The code of the documentation: README, pages and notebooks."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
_BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        language: "python", "bash", "yaml", ...
        title: The file that the block is a part of; "" if it stands alone.
        text: The code.
    """

    language: str
    title: str
    text: str


def pages() -> list[Path]:
    """Every page that users read."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]


def blocks_of(page: Path) -> list[Block]:
    """The blocks of code of a page, in order."""
    return [Block(*found) for found in _BLOCK.findall(page.read_text())]


def code_of(page: Path) -> list[str]:
    """The Python of a page or a notebook, one text a block or cell."""
    if page.suffix == ".ipynb":
        cells = json.loads(page.read_text())["cells"]
        return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return [block.text for block in blocks_of(page) if block.language == "python"]


def commands_of(page: Path) -> list[str]:
    """The command lines of a page, without comments, with continued lines joined."""
    text = "\n".join(block.text for block in blocks_of(page) if block.language == "bash").replace("\\\n", " ")
    return [line.partition(" #")[0].strip() for line in text.splitlines() if line.strip() and line[0] != "#"]

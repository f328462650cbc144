"""A text task that every machine with this project has: which package is a docstring from?"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

PUBLIC = ("lightning", "peft", "matplotlib", "sympy", "PIL", "networkx", "torchvision", "rich")
PRIVATE = ("numpy", "scipy", "pandas", "sklearn", "torch", "transformers", "timm", "torchmetrics")
VOCABULARY, LENGTH, ROWS_OF_A_FILE, FEWEST_WORDS = 2048, 32, 3, 10


def load_docstrings(packages: Sequence[str], limit: int, seed: int) -> tuple[list[dict[str, Tensor]], list[str]]:
    """Return rows of token ids, attention mask and the package's number, and the file that each is from.

    Args:
        packages: The packages.
        limit: The most rows of a package.
        seed: For the choice of files and rows, and for their order.
    """
    rows = [(words, label, file) for label, name in enumerate(packages) for words, file in _rows(name, limit, seed)]
    random.Random(seed).shuffle(rows)
    return [_encode(words, label) for words, label, _ in rows], [file for _, _, file in rows]


def _rows(package: str, limit: int, seed: int) -> Iterator[tuple[list[str], str]]:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f'{package} is not installed. Install what the tests need: pip install -e ".[dev]"')
    root, count = Path(spec.submodule_search_locations[0]), 0
    files = sorted(root.rglob("*.py"))
    random.Random(seed).shuffle(files)
    for file in files:
        name = f"{package}/{file.relative_to(root)}"
        found = list(_docstrings(file))
        random.Random(f"{seed} {name}").shuffle(found)
        for words in found[: min(ROWS_OF_A_FILE, limit - count)]:
            count += 1
            yield words, name
        if count == limit:
            return


def _docstrings(file: Path) -> Iterator[list[str]]:
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):
        return  # templates and the like
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            words = re.findall(r"[a-z]+", (ast.get_docstring(node) or "").lower())
            telling = [word for word in words if word not in PUBLIC + PRIVATE]  # a package's name would give it away
            if len(telling) >= FEWEST_WORDS:
                yield telling


def _encode(words: list[str], label: int) -> dict[str, Tensor]:
    ids = [1, *(_token(word) for word in words[: LENGTH - 1])]
    padding = [0] * (LENGTH - len(ids))
    return {
        "input_ids": torch.tensor(ids + padding),
        "attention_mask": torch.tensor([1] * len(ids) + padding),
        "labels": torch.tensor(label),
    }


def _token(word: str) -> int:
    number = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=4).digest(), "big")
    return 2 + number % (VOCABULARY - 2)

"""The code that the documentation shows: it parses, its names and options exist, and the tutorials run."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import lightning as L
import pytest
from cyclopts import CycloptsError
from torch import nn

from lightning_s3t.cli.main import LIGHTNING_COMMANDS, make_app
from tests.docs.pages import DOCS, ROOT, Block, blocks_of, code_of, commands_of, pages
from tests.people import Classifier, People, PeopleData

NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))
TUTORIALS = [DOCS / "start.md", *sorted((DOCS / "tutorials").glob("*.md"))]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [*pages(), *NOTEBOOKS], ids=name_of)
def test_python_parses_and_its_imports_exist(page: Path) -> None:
    for code in code_of(page):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lightning_s3t"):
                module = import_module(str(node.module))
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


def s3t_commands() -> Iterator[tuple[str, list[str]]]:
    for page in pages():
        for line in commands_of(page):
            for command in re.split(r"&&|;|\|", line):
                words = shlex.split(re.sub(r"[<>] *\S+|\$\(.*\)", "", command))
                if words[:1] == ["s3t"] and words[1] not in LIGHTNING_COMMANDS:
                    yield f"{name_of(page)}: {command.strip()}", words[1:]


def test_commands_and_their_options_exist() -> None:
    app, refused = make_app(), []
    for line, words in s3t_commands():
        dash = ["--", "-"] if "-" in words else []  # as the command itself does it
        try:
            app.parse_args([word for word in words if word != "-"] + dash, exit_on_error=False, print_error=False)
        except CycloptsError as error:
            refused.append(f"{line}: {error}")
    assert refused == []


def test_the_messages_that_troubleshooting_explains_are_there() -> None:
    code = "".join(file.read_text() for file in (ROOT / "lightning_s3t").rglob("*.py"))
    code = re.sub(r'"\s*\n\s*f?"', "", code)  # strings over several lines
    page = (DOCS / "troubleshooting.md").read_text()
    messages = re.findall(r'^\| "(.*?)" \|', page, re.MULTILINE)
    parts = [part.strip(" :,.[]") for message in messages for part in re.split(r"\.\.\.|\[?\d+|\.\w+", message)]
    assert [part for part in parts if len(part) > 3 and part not in code] == []


def test_ci_installs_and_tests_as_the_readme_says() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    [command] = [line for line in commands_of(ROOT / "README.md") if "pytest" in line]
    install, test = (part.strip() for part in command.split("&&"))
    assert install.replace("pip install", "pip install --quiet --disable-pip-version-check") in ci
    assert test in ci.splitlines()


@pytest.mark.nightly
def test_the_readmes_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    [code] = [code for code in code_of(ROOT / "README.md") if "from_store" in code]
    names = {"model": Classifier(), "dm": PeopleData(People.make(300, rows=2))}
    exec(compile(code, "README.md", "exec"), names)
    assert isinstance(names["served"], L.LightningModule)
    assert isinstance(names["served"], nn.Module)
    assert names["record"].guarantee == "exact"


@pytest.mark.nightly
@pytest.mark.parametrize("page", TUTORIALS, ids=name_of)
def test_a_tutorial_runs(page: Path, tmp_path: Path) -> None:
    for block in blocks_of(page):
        if block.title:
            with (tmp_path / block.title).open("a") as file:
                file.write(block.text)
        elif block.language == "bash":
            run(block, tmp_path)


def run(block: Block, folder: Path) -> None:
    script = "\n".join(line for line in block.text.splitlines() if not line.startswith(("pip ", "git ")))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-e", "-c", script], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"

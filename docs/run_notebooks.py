"""Runs the notebooks and writes their outputs into them: `python docs/run_notebooks.py [NAME ...]`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parent / "notebooks"


def run(path: Path) -> None:
    """Run a notebook in a folder of its own.

    Args:
        path: The notebook, which is written again with its outputs.
    """
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": folder}}, record_timing=False
        )
        client.execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":  # what other people's machines say on stderr is not worth a change
            cell.outputs = [part for part in cell.outputs if part.get("name") != "stderr"]
    notebook.metadata.pop("language_info", None)
    nbformat.write(notebook, path)


if __name__ == "__main__":
    wanted = sys.argv[1:]
    for file in sorted(NOTEBOOKS.glob("*.ipynb")):
        if not wanted or file.stem in wanted:
            print(f"{file.name} ...", flush=True)
            run(file)

"""Runs the notebooks of examples/, and keeps only what a reader needs in their files.

After a change of a notebook, `python tests/support/notebooks.py` runs all of them and writes them with their outputs.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import nbclient
import nbformat
from nbformat import NotebookNode

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
METADATA = {"kernelspec": {"display_name": "Python 3", "name": "python3"}, "language_info": {"name": "python"}}


def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def text_of(notebook: NotebookNode) -> str:
    """The file of a notebook, tidied."""
    return nbformat.writes(tidied(notebook)) + "\n"


def code_of(notebook: NotebookNode) -> str:
    """All code of a notebook, without what is only IPython's."""
    lines = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code").splitlines()
    return "\n".join(line for line in lines if not line.startswith("%"))


def run(path: Path, folder: Path) -> NotebookNode:
    """Returns the notebook with its outputs. It runs from its first cell in `folder`; a cell that fails raises."""
    notebook = read(path)
    where = {"metadata": {"path": str(folder)}}
    # One output of all that a cell prints: in how many pieces it comes depends on the machine's load.
    how = {"timeout": 300, "kernel_name": "python3", "record_timing": False, "coalesce_streams": True}
    client = nbclient.NotebookClient(notebook, resources=where, **how)
    # tqdm, which timm imports, asks for ipywidgets, by which nothing here would be shown.
    client.execute(env=os.environ | {"PYTHONWARNINGS": "ignore:IProgress not found"})
    return tidied(notebook)


def tidied(notebook: NotebookNode) -> NotebookNode:
    """Returns the notebook without what differs from run to run, or says on which machine it ran."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", NotebookNode()
        for output in cell.get("outputs", []):
            output.pop("metadata", None) if output.output_type == "stream" else output.update(metadata=NotebookNode())
    return notebook


def main() -> None:
    for path in sorted(EXAMPLES.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as folder:
            path.write_text(text_of(run(path, Path(folder))))
        print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()

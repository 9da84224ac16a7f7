"""Makes the notebooks of the tutorials: python docs/notebook.py

docs/tutorial.ipynb and docs/tutorial.ko.ipynb are the tutorials with their Python as
cells. Commands for a terminal stay text, and so do excerpts of the code, which begin
with the name of their file.
"""

import re
from pathlib import Path

import jupytext
import nbformat

TUTORIALS = {
    "tutorial": """\
This is the notebook of [tutorial.md](tutorial.md). Its first cell goes to the folder of
the repository; the commands between the cells are for a terminal in that folder.""",
    "tutorial.ko": """\
이 노트북은 [tutorial.ko.md](tutorial.ko.md)에서 만들었습니다. 첫 셀이 저장소 폴더로
옮겨 가며, 셀 사이에 있는 명령은 그 폴더의 터미널에서 입력합니다.""",
}
_ENTER = """\
import os

if not os.path.exists("train.py"):  # the notebook lies in docs/
    os.chdir("..")"""
_KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def make_notebook(text: str, note: str) -> nbformat.NotebookNode:
    """The notebook of a tutorial in Markdown, with `note` below its title.

    Its cells have the ids 0, 1, ..., so that the same text makes the same file.
    """
    # What jupytext calls noeval stays in the text.
    text = re.sub(r"^```(sh|text)$", r"```\1 .noeval", text, flags=re.M)
    text = re.sub(
        r"^```python\n(?=# resnet_jax/)", "```python .noeval\n", text, flags=re.M
    )
    notebook = jupytext.reads(text, {"extension": ".md", "split_at_heading": True})
    for cell in notebook.cells:
        cell.source = cell.source.replace(" .noeval\n", "\n")
    notebook.cells[1:1] = [
        nbformat.v4.new_markdown_cell(note),
        nbformat.v4.new_code_cell(_ENTER),
    ]
    for number, cell in enumerate(notebook.cells):
        cell.id = str(number)
    notebook.metadata = nbformat.from_dict({"kernelspec": _KERNEL})
    return notebook


if __name__ == "__main__":
    folder = Path(__file__).parent
    for name, note in TUTORIALS.items():
        text = (folder / f"{name}.md").read_text(encoding="utf-8")
        nbformat.write(make_notebook(text, note), folder / f"{name}.ipynb")

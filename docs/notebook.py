"""Generates the notebooks of the tutorials: `python docs/notebook.py`.

docs/tutorial.ipynb and docs/tutorial.ko.ipynb contain the tutorials with their Python
code as cells. Terminal commands remain text, as do excerpts of the package's code,
which start with the name of their file.
"""

import re
import tomllib
from pathlib import Path

import jupytext
import nbformat

TUTORIALS = {
    "tutorial": """\
This notebook is generated from [tutorial.md](tutorial.md). Its first cell changes to
the folder of the repository and installs the package if it is missing. The
commands between the cells are for a terminal in that folder. The last cell needs the
results of `python train.py digits` and `resnet-jax export runs/digits digits-resnet8`;
the other commands are optional.""",
    "tutorial.ko": """\
이 노트북은 [tutorial.ko.md](tutorial.ko.md)의 노트북판입니다. 첫 셀은 저장소 폴더로
이동하고, 패키지가 없으면 설치합니다. 셀 사이에 있는 명령은 그 폴더의 터미널에서
실행합니다. 마지막 셀에는 `python train.py digits`와 `resnet-jax export runs/digits
digits-resnet8`의 결과가 필요하며, 나머지 명령은 실행하지 않아도 됩니다.""",
}
_ENTER = """\
import os
import subprocess
import sys
from importlib import metadata

if not os.path.exists("train.py"):  # the notebook is in docs/
    os.chdir("..")
try:
    metadata.version("resnet-flax-linen")
except metadata.PackageNotFoundError:
    subprocess.run([sys.executable, "-m", "pip", "install", "-qe", "."], check=True)"""
_CLONE = """\
import os
import subprocess

if not os.path.exists("train.py") and not os.path.exists("../train.py"):
    subprocess.run(["git", "clone", "--depth=1", "{url}", "resnet_jax"], check=True)
    os.chdir("resnet_jax")
"""
_BADGE = (
    "[![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    "(https://colab.research.google.com/github/{path}/blob/main/docs/{name}.ipynb)"
)
_KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def repository() -> str | None:
    """Returns the address of the public repository, if pyproject.toml has one."""
    project = Path(__file__).parent.parent / "pyproject.toml"
    urls = tomllib.loads(project.read_text(encoding="utf-8"))["project"]["urls"]
    return urls.get("Repository")


def make_notebook(
    text: str, note: str, name: str = "tutorial", url: str | None = None
) -> nbformat.NotebookNode:
    """Returns the notebook of a tutorial in Markdown, with `note` below its title.

    The cells have the ids 0, 1, ..., so the same text always gives the same file. With
    the `url` of a GitHub repository, the notebook has a badge that opens it in Colab,
    where its first cell clones the repository.
    """
    enter = _ENTER
    if url is not None:
        path = url.removeprefix("https://github.com/")
        note = _BADGE.format(path=path, name=name) + "\n\n" + note
        enter = _CLONE.format(url=url) + enter.removeprefix(
            "import os\nimport subprocess\n"
        )
    # jupytext keeps blocks marked noeval as text.
    text = re.sub(r"^```(sh|text)$", r"```\1 .noeval", text, flags=re.M)
    text = re.sub(
        r"^```python\n(?=# resnet_jax/)", "```python .noeval\n", text, flags=re.M
    )
    notebook = jupytext.reads(text, {"extension": ".md", "split_at_heading": True})
    for cell in notebook.cells:
        cell.source = cell.source.replace(" .noeval\n", "\n")
    notebook.cells[1:1] = [
        nbformat.v4.new_markdown_cell(note),
        nbformat.v4.new_code_cell(enter),
    ]
    for number, cell in enumerate(notebook.cells):
        cell.id = str(number)
    notebook.metadata = nbformat.from_dict({"kernelspec": _KERNEL})
    return notebook


if __name__ == "__main__":
    folder = Path(__file__).parent
    for name, note in TUTORIALS.items():
        text = (folder / f"{name}.md").read_text(encoding="utf-8")
        made = make_notebook(text, note, name, repository())
        nbformat.write(made, folder / f"{name}.ipynb")

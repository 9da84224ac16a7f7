import ast
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from docs import notebook

ROOT = Path(notebook.__file__).parent.parent


def test_python_becomes_cells_and_the_rest_stays():
    text = (
        "# T\n\nwords\n\n## A\n\n```sh\nrm -rf x\n```\n\n"
        "```python\n# resnet_jax/blocks.py\ny = f(self)\n```\n\n```text\n1 2\n```\n\n"
        "```python\n# a comment\nprint(1)\n```\n\nmore\n"
    )
    cells = notebook.make_notebook(text, "note").cells
    assert [c.source for c in cells if c.cell_type == "code"][1:] == [
        "# a comment\nprint(1)"
    ]
    assert [c.source for c in cells if c.cell_type == "markdown"] == [
        "# T\n\nwords",
        "note",
        "## A\n\n```sh\nrm -rf x\n```\n\n"
        "```python\n# resnet_jax/blocks.py\ny = f(self)\n```\n\n```text\n1 2\n```",
        "more",
    ]


def test_with_a_public_repository_it_opens_in_colab():
    url = "https://github.com/someone/somewhere"
    cells = notebook.make_notebook("# T\n\n## A\n\nb\n", "note", "t.ko", url).cells
    assert "colab" in cells[1].source and cells[1].source.endswith("\n\nnote")
    assert "/github/someone/somewhere/blob/main/docs/t.ko.ipynb)" in cells[1].source
    assert f'"{url}", "resnet_jax"' in cells[2].source
    assert 'os.chdir("..")' in cells[2].source
    ast.parse(cells[2].source)


@pytest.mark.parametrize("name", notebook.TUTORIALS)
def test_the_notebook_is_that_of_the_tutorial(name, tmp_path):
    text = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
    note, url = notebook.TUTORIALS[name], notebook.repository()
    made = notebook.make_notebook(text, note, name, url)
    nbformat.validate(made)
    assert sum(cell.cell_type == "code" for cell in made.cells) == 7
    nbformat.write(made, tmp_path / "made.ipynb")
    kept = (ROOT / "docs" / f"{name}.ipynb").read_text(encoding="utf-8")
    assert (tmp_path / "made.ipynb").read_text(encoding="utf-8") == kept, (
        "the tutorial has changed: python docs/notebook.py"
    )


def test_the_notebooks_have_the_same_code_but_for_comments():
    read = [
        nbformat.read(ROOT / "docs" / f"{name}.ipynb", as_version=4)
        for name in notebook.TUTORIALS
    ]
    first, *others = (
        [ast.dump(ast.parse(c.source)) for c in made.cells if c.cell_type == "code"]
        for made in read
    )
    assert others == [first] and len(first) == 7


@pytest.mark.process
def test_the_notebook_runs(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    # The outputs of the tutorial's commands that its cells need.
    for arguments in (
        ("train", "digits", "--epochs", "1"),
        ("export", "runs/digits", "digits-resnet8"),
    ):
        command = [sys.executable, "-m", "resnet_jax", *arguments]
        subprocess.run(command, cwd=tmp_path, check=True, env=os.environ)
    (tmp_path / "docs").mkdir()
    made = nbformat.read(ROOT / "docs" / "tutorial.ipynb", as_version=4)
    client = nbclient.NotebookClient(
        made, timeout=600, resources={"metadata": {"path": str(tmp_path / "docs")}}
    )
    client.execute()
    printed = {
        cell.id: "".join(output.get("text", "") for output in cell.outputs)
        for cell in made.cells
        if cell.cell_type == "code"
    }
    shown = "\n".join(printed.values())
    assert "[[3. 3.]\n [3. 3.]]" in shown  # the convolution of section 2
    assert "1180672\n70400\n" in shown
    assert "False none torch" in shown and "10 " in shown

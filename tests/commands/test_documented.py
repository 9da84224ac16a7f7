"""The commands of the documentation run, one page after the other.

Trainings are shortened by further options, and start from weights that the test writes
instead of ImageNet's or of published files with other names. Evaluations use the same
64 test images as trainings. NOT_RUN says of each of the others why it is not run.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from pages import PAGES, ROOT, blocks, commands_of
from PIL import Image
from safetensors.numpy import save_file

import resnet_jax
from resnet_jax.training import init_variables

pytestmark = pytest.mark.slow

INSTALLS = "sets up a machine"
# The first that is found in a command.
NOT_RUN = {
    r"^(git|cd|pip|python3|\.|source|export|pre-commit|docker|mkdocs) ": INSTALLS,
    r"^(pytest|ruff|mypy|lint-imports|\.ci/run)\b": "checks this repository",
    r"^cat .*cifar|^tensorboard|^mkdir|^ls ": "shows files, or keeps running",
    r"python -m benchmarks\.": "measures for minutes or hours",
    r"hf-hub:|cifar10_1|imagenet_v2|cifar100": "downloads",
    r"--coordinator|--num-processes|/data/|\.\.\.": "needs several machines or a path",
}
SHORTER = {
    r"train\.py|train ": "--max-train-samples 64 --max-test-samples 64 --max-steps 2",
    r"experiments": "--max-train-samples 256 --max-test-samples 64",
    r"experiments (skip|batchnorm)": "--epochs 1",
    r"experiments batchnorm": "--lrs 0.1",
    r"experiments (gradients|skip)": "--depths 8",
    r"experiments gradients": "--steps 2 --pair-depth 8 --pair-epochs 1",
    r"train\.py (transfer|finetune|probe)": "--batch-size 32",
    r"(transfer|finetune|probe)(?!.*--pretrained)": "--pretrained my-resnet18.pth",
    r"(transfer|finetune|probe)(?!.*(folder|image-size))": "--image-size 32",
    r"train\.py imagenet": "--batch-size 16 --image-size 32 --model resnet18",
    r"--dataset folder": "--image-size 32",
    r"train\.py (fast|resnet20|resnet18|hresnet\S*)\b": "--batch-size 32",
}
# In the names of two weights files; those that the test writes have another sha256.
DIGEST = "-(12fca82f|4118986f)"
# Runs a script or module with the test images that --max-test-samples 64 chooses.
FEW = """
import runpy, sys
from resnet_jax.data import dataset, sources
load_test = sources.load_test
def few(cfg):
    found = load_test(cfg)
    return found._replace(test=dataset.subset(found.test, 64))
sources.load_test = few
del sys.argv[0]
if sys.argv[0] == "resnet-jax":
    runpy.run_module("resnet_jax", run_name="__main__", alter_sys=True)
else:
    runpy.run_path(sys.argv[0], run_name="__main__")
"""
# What earlier pages have trained.
BEFORE = {
    "docs/evaluation.md": ["train.py hresnet", "train.py resnet20"],
    "docs/tutorial.md": [
        "train.py hresnet-plus",
        "train.py probe --dataset folder --data-dir pets --workdir runs/pets",
    ],
}


def reason_not_to_run(command: str) -> str | None:
    return next(
        (why for what, why in NOT_RUN.items() if re.search(what, command)), None
    )


def shorten(command: list[str]) -> list[str]:
    text = " ".join(command)
    more = (words for what, words in SHORTER.items() if re.search(what, text))
    renamed = [re.sub(DIGEST, "", word) for word in command]
    return renamed + " ".join(more).split()


RUN = {
    page: [
        command
        for block in blocks(page, "sh")
        for command in commands_of(block)
        if not reason_not_to_run(" ".join(command))
    ]
    for page in PAGES
    if not page.endswith(".ko.md")  # with the commands of the English page
}


@pytest.fixture
def folder(tmp_path):
    """A folder with the repository's programs and a user's images and weights."""
    for name in ("train.py", "evaluate.py", "docs", "experiments", "resnet_jax"):
        os.symlink(ROOT / name, tmp_path / name)
    rng = np.random.default_rng(0)

    def write(path: str, side: int = 48) -> None:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (side, side, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / path)

    for name in ("a.jpg", "b.png", "new.jpg", "photographs/c.jpg"):
        write(name)
    for split, count in (("train", 40), ("val", 40)):
        for number in range(count):
            write(f"pets/{split}/{'cat' if number % 2 else 'dog'}/{number}.png")
            write(f"imagenet/{split}/n{number % 2}/{number}.png")
    options = {
        "my-resnet18.pth": ("resnet18", 1000, {}),
        "FILE": ("resnet18", 10, {}),
        "runs/reference/initial.pth": ("hresnet", 10, {}),  # of a benchmark
        "resnet20.th": ("resnet20", 10, {}),
        "cifar10_resnet20.pt": ("resnet20", 10, {"shortcut": "conv_bn"}),
    }
    for name, (network, num_classes, more) in options.items():
        model = resnet_jax.create_model(network, num_classes=num_classes, **more)
        variables = init_variables(model, (32, 32, 3), key=jax.random.key(0))
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        save_file(resnet_jax.to_torch(variables), tmp_path / "w.safetensors")
        os.replace(tmp_path / "w.safetensors", tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("page", [page for page, commands in RUN.items() if commands])
def test_the_commands_of_a_page_run(page, folder, real_data_dir):
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "TFDS_DATA_DIR": str(real_data_dir),
        "PYTHONWARNINGS": "default",
    }
    programs = {
        "python": [sys.executable],
        "resnet-jax": [sys.executable, "-m", "resnet_jax"],
    }
    few = [sys.executable, "-c", FEW]
    before = [["python", *command.split()] for command in BEFORE.get(page, ())]
    for command in before + RUN[page]:
        program, *rest = shorten(command)
        is_scored = re.search(r"\b(evaluate|export)\b", " ".join(command))
        start = [*few, *(["resnet-jax"] * (program != "python"))]
        done = subprocess.run(
            (start if is_scored else programs[program]) + rest,
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{program} {rest}: {done.stderr[-3000:]}"
        assert "Traceback" not in done.stderr


def test_most_commands_are_run():
    everything = [
        " ".join(command)
        for page in RUN
        for block in blocks(page, "sh")
        for command in commands_of(block)
    ]
    ours = [
        command
        for command in everything
        if re.match(
            r"(python (train|evaluate)\.py|python -(m exp|c)|resnet-jax)", command
        )
    ]
    run = sum(map(len, RUN.values()))
    assert run == sum(reason_not_to_run(command) is None for command in ours)
    assert run > 0.8 * len(ours)


def test_a_command_that_fails_is_found(folder):
    assert Path(folder / "train.py").exists()
    done = subprocess.run([sys.executable, "train.py", "nothing"], cwd=folder)
    assert done.returncode == 2

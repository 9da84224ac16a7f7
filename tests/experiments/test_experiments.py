import sys
from functools import partial

import numpy as np
import pytest

from experiments import variants
from experiments.__main__ import main
from experiments.batchnorm import BatchNorm
from experiments.gradients import Gradients, convolutions
from experiments.skip import Skip
from resnet_jax import data, fields, files, models
from resnet_jax.data import sources
from resnet_jax.errors import ConfigError
from resnet_jax.models.blocks import BasicBlock
from resnet_jax.models.resnet import ResNet


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """60 images of noise as CIFAR-10, and two names for a network of one block."""
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "experiments", "skip"])
    sizes = {"stage_sizes": (1,), "widths": (4,)}
    make = partial(ResNet, block=BasicBlock, stem="cifar", shortcut="pad", **sizes)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (80, 8, 8, 3), np.uint8)
    labels = np.arange(80, dtype=np.int32) % 10
    whole = data.Dataset(images, labels, tuple("0123456789"))
    few = whole.take(slice(60)), whole.take(slice(60, None))
    source = sources.Source((8, 8, 3), lambda cfg: (10, lambda: few))
    monkeypatch.setitem(sources.SOURCES, "cifar10", source)
    for name in ("resnet8", "resnet14"):
        monkeypatch.setitem(models.MODELS, name, make)


def page_of(experiment):
    text = (experiment.workdir / "index.html").read_text(encoding="utf-8")
    for name in experiment.variants():
        assert f'<th scope="row">{name}</th>' in text
    assert "<dt>command</dt><dd>python -m experiments " in text
    return text


@pytest.mark.process  # for its time: ten runs
def test_gradients(tmp_path):
    experiment = Gradients(
        depths=(8,), steps=2, batch_size=30, pair_depth=8, pair_epochs=1,
        workdir=tmp_path,
    )  # fmt: skip
    assert len(experiment.variants()) == 10  # 2 x 2 x 2 and the pair
    main(experiment)
    text = page_of(experiment)
    assert text.count("data:image/png") == 3
    # The first number of the page, from the log itself.
    record = files.read_jsonl(tmp_path / "8-skip-batch-kaiming" / "layers.jsonl")[0]
    places, values = convolutions(record, "gradient")
    assert places == [1, 2, 3]
    assert f"<td>kaiming</td><td>{values[0] / values[-1]:.2g}</td>" in text
    vanished = files.read_jsonl(tmp_path / "vanished" / "metrics.jsonl")
    assert (
        f"Vanished: the training loss by epoch is {vanished[0]['train_loss']:.3f}"
        in text
    )


@pytest.mark.process
def test_skip(tmp_path):
    experiment = Skip(depths=(8, 14), epochs=1, workdir=tmp_path)
    assert [c.model.skip for c in experiment.variants().values()] == [False, True] * 2
    main(experiment)
    page_of(experiment)
    # The sentence, of errors that are known.
    accuracies = {
        "plain-8": 0.5,
        "plain-14": 0.4,
        "residual-8": 0.6,
        "residual-14": 0.7,
    }
    experiment.write_page(
        {
            name: variants.Outcome(cfg, [record_of(accuracies[name])], [], None)
            for name, cfg in experiment.variants().items()
        }
    )
    text = page_of(experiment)
    assert (
        "Plain: with 14 layers, the final training error is 10.00 percentage points "
        "higher than with 8 (60.00 versus 50.00 %)."
    ) in text
    assert (
        "Residual: with 14 layers, the final training error is 10.00 percentage "
        "points lower" in text
    )


def record_of(accuracy):
    scores = {"train_accuracy": accuracy, "test_accuracy": accuracy}
    return {"epoch": 1, "step": 1, "train_loss": 1.0, **scores}


@pytest.mark.process
def test_a_variant_that_diverges_is_a_result_and_is_kept(tmp_path, capsys):
    experiment = BatchNorm(model="resnet8", lrs=(0.1, 1e20), epochs=2, workdir=tmp_path)
    every = experiment.variants()
    few = {name: every[name] for name in ("BatchNorm-torch-0.1", "none-kaiming-1e+20")}
    first = variants.run(few, tmp_path)
    capsys.readouterr()
    outcomes = variants.run(few, tmp_path)
    assert outcomes == first
    shown = capsys.readouterr().out  # the second call trains nothing
    assert "is finished" in shown and "-- none-kaiming-1e+20" not in shown
    diverged, trained = outcomes["none-kaiming-1e+20"], outcomes["BatchNorm-torch-0.1"]
    assert diverged.diverged is not None and trained.diverged is None
    assert len(trained.records) == 2 and len(trained.layers) == 3
    changed = {name: fields.replace(cfg, epochs=3) for name, cfg in few.items()}
    del changed["BatchNorm-torch-0.1"]
    with pytest.raises(ConfigError, match="a diverged run with another configuration"):
        variants.run(changed, tmp_path)


@pytest.mark.slow  # twelve runs
def test_batchnorm_and_a_variant_that_diverges(tmp_path, capsys):
    experiment = BatchNorm(model="resnet8", lrs=(0.1, 1e20), epochs=2, workdir=tmp_path)
    main(experiment)
    text = page_of(experiment)
    assert text.count("diverged") >= 2
    capsys.readouterr()
    outcomes = variants.run(experiment.variants(), tmp_path)
    assert outcomes["none-kaiming-1e+20"].diverged is not None
    shown = capsys.readouterr().out  # the second call trains nothing
    assert "is finished" in shown and "-- none-kaiming-1e+20" not in shown
    lrs = {o.cfg.optim.lr for o in outcomes.values() if o.diverged is None}
    assert 0.1 in lrs


def outcome_of(cfg, first, train, test, mean, diverged=None):
    scores = {"train_loss": 1.0, "train_accuracy": train}
    records = [
        {"epoch": 1, "step": 1, **scores, "test_accuracy": first},
        {"epoch": 2, "step": 2, **scores, "test_accuracy": test},
    ]
    names = ("conv1", "layer1.0.conv1", "layer2.0.conv1")
    layers = [
        {
            "epoch": epoch,
            "layers": {n: {"input_mean": m, "input_std": 0.5} for n in names},
        }
        for epoch, m in ((0, 0.25), (2, mean))
    ]
    return variants.Outcome(cfg, [] if diverged else records, layers, diverged)


def test_the_sentences_of_batchnorm_are_those_of_known_figures(tmp_path):
    experiment = BatchNorm(
        lrs=(0.1, 1.0), max_train_samples=10_000, seed=3, workdir=tmp_path
    )
    known = {
        "BatchNorm-kaiming-0.1": (0.30, 0.60, 0.50, 0.5),
        "BatchNorm-torch-0.1": (0.35, 0.50, 0.45, 0.5),
        "BatchNorm-kaiming-1": (0.10, 0.30, 0.20, 0.5),
        "BatchNorm-torch-1": (0.10, 0.40, 0.40, 0.5),
        "none-kaiming-0.1": (0.20, 0.40, 0.42, 1.5),
        "none-torch-0.1": (0.15, 0.20, 0.25, 1.5),
        "none-kaiming-1": (0.1, 0.1, 0.1, 1.0, "nan"),
        "none-torch-1": (0.10, 0.15, 0.30, 1.0),
        "dropout-kaiming-0.1": (0.1, 0.1, 0.11, 0.25),
        "dropout-torch-0.1": (0.1, 0.1, 0.10, 0.25),
        "dropout-kaiming-1": (0.1, 0.1, 0.10, 0.25),
        "dropout-torch-1": (0.1, 0.1, 0.10, 0.25),
    }
    cfgs = experiment.variants()
    assert cfgs.keys() == known.keys()
    experiment.write_page({n: outcome_of(cfgs[n], *v) for n, v in known.items()})
    text = page_of(experiment)
    for sentence in (
        "the best run is 35.00 % with BatchNorm, 20.00 % without, 10.00 % with dropout",
        "run trains is 1 with BatchNorm, 0.1 without, none with dropout instead.",
        "percentage points: 20.00 with BatchNorm, 20.00 without, 1.00 with dropout",
        "percentage points, +10.00 with BatchNorm, -2.00 without, -1.00 with dropout",
        "before training: 0.50 with BatchNorm, 2.50 without, 0.00 with dropout",
        "The runs use 10,000 of 50,000 training images and all test images of "
        "CIFAR-10. There is one run of each network, with seed 3.",
    ):
        assert sentence in text, sentence


def test_the_sentences_of_gradients_are_those_of_known_figures(tmp_path):
    experiment = Gradients(depths=(8,), workdir=tmp_path)
    ends = {"plain-none": (1e-5, 1.0), "plain-batch": (500.0, 2.0)}

    def outcome(name, cfg):
        first, last = ends.get("-".join(name.split("-")[1:3]), (3.0, 1.0))
        values = {"gradient": first, "update_ratio": 1e-3}
        layers = {"conv1": values, "conv2": {**values, "gradient": last}}
        return variants.Outcome(cfg, [record_of(0.1)], [{"layers": layers}], None)

    cfgs = experiment.variants()
    experiment.write_page({name: outcome(name, cfg) for name, cfg in cfgs.items()})
    text = page_of(experiment)
    assert (
        "with 8 layers, the gradient has vanished on its way from the last convolution "
        "to the first in these networks: plain, no BatchNorm (kaiming); plain, no "
        "BatchNorm (torch)."
    ) in text
    assert "has exploded on its way" in text
    assert "networks: plain, BatchNorm (kaiming); plain, BatchNorm (torch)." in text
    assert (
        "in these networks: shortcuts, BatchNorm (kaiming); shortcuts only (kaiming);"
        in text
    )

import pytest

from experiments import variants
from experiments.__main__ import main
from experiments.batchnorm import BatchNorm
from experiments.gradients import Gradients, convolutions
from experiments.skip import Skip
from resnet_jax import data, files, models
from resnet_jax.blocks import BasicBlock
from resnet_jax.models import ResNet


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """60 digits as CIFAR-10, and two names for a network of two blocks."""

    def make(**options):
        options = {"shortcut": "pad", **options}
        return ResNet(BasicBlock, (1, 1), widths=(4, 8), stem="cifar", **options)

    loaded = data.load_dataset("digits")
    few = tuple(p.take(slice(n)) for p, n in zip(loaded, (60, 20), strict=True))
    monkeypatch.setattr(data, "load_dataset", lambda *args, **options: few)
    for name in ("resnet8", "resnet14"):
        monkeypatch.setitem(models.MODELS, name, make)


def page_of(experiment):
    text = (experiment.workdir / "index.html").read_text(encoding="utf-8")
    for name in experiment.variants():
        assert f"<td>{name}</td>" in text
    return text


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
    assert places == [1, 2, 3, 4, 5]
    assert f"<td>kaiming</td><td>{values[0] / values[-1]:.2g}</td>" in text
    vanished = files.read_jsonl(tmp_path / "vanished" / "metrics.jsonl")
    assert f"Vanished: training loss by epoch {vanished[0]['train_loss']:.3f}" in text


def test_skip(tmp_path):
    experiment = Skip(depths=(8, 14), epochs=1, workdir=tmp_path)
    assert [c.skip for c in experiment.variants().values()] == [False, True] * 2
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
        "Plain: with 14 layers the training error ends 10.00 points higher than with 8 "
        "(60.00 against 50.00 %)."
    ) in text
    assert "Residual: with 14 layers the training error ends 10.00 points lower" in text


def record_of(accuracy):
    scores = {"train_accuracy": accuracy, "test_accuracy": accuracy}
    return {"epoch": 1, "step": 1, "train_loss": 1.0, **scores}


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
    lrs = {o.cfg.lr for o in outcomes.values() if o.diverged is None}
    assert 0.1 in lrs

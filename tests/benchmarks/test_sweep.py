import pytest

from benchmarks import sweep
from benchmarks.sweep import Sweep
from experiments.variants import Outcome
from resnet_jax import fields
from resnet_jax.commands import train
from resnet_jax.config import Config
from resnet_jax.errors import ConfigError
from resnet_jax.recipes import RECIPES


def test_a_grid_is_every_combination_for_every_seed():
    cfg = Sweep(
        "hresnet", grid=("lr=.1,2e-3", "flip=random,none"), set=("epochs=2",), seeds=2
    )
    found = sweep.trials(cfg)
    assert len(found) == 8
    one = found["hresnet-epochs=2-lr=0.002-flip=none-seed=1"]
    assert (one.optim.lr, one.augment.flip) == (2e-3, "none")
    assert (one.seed, one.run.epochs) == (1, 2)
    base = fields.replace(RECIPES["hresnet"][1], epochs=2, validation_split=0.1)
    assert fields.replace(one, lr=base.optim.lr, flip="none", seed=0) == base


def test_each_is_one_change_at_a_time_beside_the_recipe():
    found = sweep.trials(
        Sweep("resnet20", each=("crop_padding=0", "lr=.2,.3", "width=none"))
    )
    assert list(found) == [
        f"resnet20{change}-seed=0"
        for change in ("", "-crop_padding=0", "-lr=0.2", "-lr=0.3", "-width=None")
    ]
    assert found["resnet20-lr=0.3-seed=0"].augment.crop_padding == 2


@pytest.mark.parametrize(
    "axis, message",
    [
        ("learning_rate=1", "'learning_rate=1' must be FIELD=VALUE"),
        ("lr", "'lr' must be FIELD=VALUE"),
        ("lr=.1,high", "lr=.1,high is 'high', which is not of type <class 'float'>"),
        ("optimizer=lion", "optimizer=lion is 'lion'"),
        ("epochs=1.5", "epochs=1.5 is 1.5"),
        ("lr=1-2", "lr=1-2 is '1-2'"),
        ("seed=0,1", "the sweep sets seed itself"),
        ("validation_split=0", "the sweep sets validation_split itself"),
        ("lr=-1", "lr -1.0 is not in"),
    ],
)
def test_what_is_no_field_or_value_is_said(axis, message):
    with pytest.raises(ConfigError, match=message):
        sweep.trials(Sweep("hresnet", grid=(axis,)))


def test_none_is_a_value_or_nothing_by_its_field():
    assert sweep.parse("norm=none,batch") == ("norm", ["none", "batch"])
    assert sweep.parse("pretrained=none,a.pth") == ("pretrained", [None, "a.pth"])
    steps = sweep.parse("lr_milestones=[3,7],[5],[]")
    assert steps == ("lr_milestones", [(3, 7), (5,), ()])
    assert sweep.parse("width=none,16") == ("width", [None, 16])
    assert sweep.parse("remat=True,false") == ("remat", [True, False])


def test_of_all_runs_a_field_has_one_value():
    with pytest.raises(ConfigError, match="several values: use --grid or --each"):
        sweep.trials(Sweep("hresnet", set=("lr=.1,.2",)))


@pytest.mark.parametrize("option", ["set", "grid"])
def test_a_field_given_twice_is_refused(option):
    with pytest.raises(ConfigError, match="lr is given twice: use lr=VALUE,VALUE"):
        sweep.trials(Sweep("hresnet", **{option: ("lr=.1", "lr=.2")}))


def test_what_is_set_is_in_the_name_so_that_two_sweeps_have_their_own_runs():
    names = [
        *sweep.trials(Sweep("fast", set=("width=16",), each=("width=8",))),
        *sweep.trials(Sweep("fast", set=("width=8", "lr=.1"))),
    ]
    assert names == [
        *("fast-width=16-seed=0", "fast-width=8-seed=0"),
        "fast-width=8-lr=0.1-seed=0",
    ]


@pytest.mark.parametrize(
    "values, message",
    [
        ({"recipe": "resnet21"}, "unknown recipe 'resnet21'"),
        ({"seeds": 0}, "seeds 0 is too small"),
        ({"validation_split": 0.0}, "no images to compare runs on"),
    ],
)
def test_a_sweep_that_cannot_choose_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        Sweep(**{"recipe": "hresnet", **values})


def outcome(accuracy, seconds=2.0, diverged=None):
    record = {"val_accuracy": accuracy, "val_loss": 1.0, "seconds": seconds}
    records = [{**record, "val_accuracy": 0.0}, record] if accuracy else []
    return Outcome(Config(), records, [], diverged)


def test_the_table_is_of_validation_with_the_best_first():
    text = sweep.table(
        {
            "a-seed=0": outcome(0.5),
            "a-seed=1": outcome(0.6),
            "b-seed=0": outcome(0.7, seconds=3.0),
            "b-seed=1": outcome(0.9, seconds=5.0),
            "c-seed=0": outcome(None, diverged="the loss is nan"),
        }
    )
    assert text.splitlines()[2:] == [
        "| b | 80.00 ± 14.14 | 1.0000 | 8 | 2 |",
        "| a | 55.00 ± 7.07 | 1.0000 | 4 | 2 |",
        "| c | diverged | | | 1 |",
    ]


@pytest.mark.process
def test_a_sweep_goes_on_where_it_was_stopped(digits_run, monkeypatch, tmp_path):
    base, _ = digits_run(max_steps=1)
    base = fields.replace(base, epochs=1, max_steps=None)
    monkeypatch.setitem(RECIPES, "few", ("", base))
    cfg = Sweep("few", grid=("lr=.01,.1",), workdir=tmp_path / "sweep")
    trained, whole = [], train.main

    def stop(given):
        trained.append(given.optim.lr)
        whole(given)
        if len(trained) == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train, "main", stop)
        with pytest.raises(KeyboardInterrupt):
            sweep.main(cfg)
    first = tmp_path / "sweep" / "few-lr=0.01-seed=0" / "metrics.jsonl"
    before = first.read_bytes()
    sweep.main(cfg)
    assert first.read_bytes() == before
    assert (tmp_path / "sweep" / "few-lr=0.1-seed=0" / "metrics.jsonl").exists()

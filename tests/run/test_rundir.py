import dataclasses

from resnet_jax.config import Config
from resnet_jax.run import directory as rundir


def test_differences_leave_out_what_belongs_to_one_invocation():
    old = Config()
    new = dataclasses.replace(
        old, lr=0.5, epochs=3, workdir="elsewhere", profile=True, data_dir="x"
    )
    assert rundir.differences(old, new) == {"lr": (1e-4, 0.5), "epochs": (30, 3)}


def test_the_sets_name_fields():
    names = {field.name for field in dataclasses.fields(Config)}
    assert names >= rundir.TRANSIENT | rundir.OVERRIDABLE
    assert not rundir.TRANSIENT & rundir.OVERRIDABLE


def test_what_can_break_a_run_is_never_overridden():
    allowed = rundir.TRANSIENT | rundir.OVERRIDABLE
    architecture = Config().architecture.keys() - {"name"}
    learning = Config().optimization.keys() - {"name"} | {"optimizer"}
    assert not allowed & {"model", "dataset", "seed", "batch_size", "validation_split"}
    assert not allowed & {"max_train_samples", "max_test_samples", "lr", "schedule"}
    assert not allowed & architecture and not allowed & learning

import numpy as np
import pytest
from PIL import Image

from resnet_jax import data
from resnet_jax.commands import evaluate
from resnet_jax.commands.evaluate import EvaluateConfig
from resnet_jax.data import cifar10_1, sources
from resnet_jax.data.archives import CLASS_NAMES
from resnet_jax.data.dataset import Dataset
from resnet_jax.errors import ConfigError, DataError

COUNT = 12


def make_arrays(seed):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (COUNT, 32, 32, 3), np.uint8)
    return images, rng.integers(0, 10, COUNT).astype(np.int32)


@pytest.fixture
def prepare(tfds, tmp_path):
    """Writes a small CIFAR-10.1 with tensorflow-datasets, without downloading."""

    def prepare(version, seed=0, file_format="array_record"):
        images, labels = make_arrays(seed)

        with tfds.core.registered.skip_registration():

            class Cifar10_1(tfds.image_classification.Cifar10_1):
                def _split_generators(self, dl_manager):
                    return {"test": self._generate_examples(None, None)}

                def _generate_examples(self, image_path, label_path):
                    for index in range(COUNT):
                        image, label = (
                            Image.fromarray(images[index]),
                            int(labels[index]),
                        )
                        yield index, {"image": image, "label": label}

        Cifar10_1.name = cifar10_1.NAME
        home = tmp_path / "tfds"
        builder = Cifar10_1(config=version, data_dir=home, file_format=file_format)
        tfds.disable_progress_bar()
        builder.download_and_prepare()
        directory = home / cifar10_1.NAME / version / "1.1.0"
        assert (directory / "dataset_info.json").is_file()
        return directory, images, labels

    return prepare


def as_set(images, labels):
    return {(image.tobytes(), int(y)) for image, y in zip(images, labels, strict=True)}


def test_it_has_a_test_split_of_cifar10_s_classes(prepare, caplog):
    caplog.set_level("INFO")
    directory, images, labels = prepare("v4")
    train_split, test = data.load_dataset("cifar10_1")
    assert f"cifar10_1: reading {directory}" in caplog.text
    assert len(train_split) == 0 and test.class_names == CLASS_NAMES
    assert as_set(test.images, test.labels) == as_set(images, labels)
    assert test.labels.dtype == np.int32
    described = data.describe(sources.DataConfig(dataset="cifar10_1"))
    assert described[:2] == (10, (32, 32, 3))

    # If both versions exist, the balanced one is loaded.
    directory, images, labels = prepare("v6", seed=1)
    test = data.load_dataset("cifar10_1", directory.parents[2])[1]
    assert as_set(test.images, test.labels) == as_set(images, labels)


def test_it_is_not_trained_on(prepare, digits_run, tmp_path):
    prepare("v6")
    with pytest.raises(ConfigError) as error:
        digits_run(dataset="cifar10_1", workdir=str(tmp_path / "run"))
    assert str(error.value) == (
        "data set cifar10_1 has no training images and is for evaluation only: score "
        "a run on it with evaluate.py RUN --dataset cifar10_1"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.process
def test_a_network_of_cifar10_is_scored_on_it(
    prepare, one_block, digits_run, tmp_path, capsys, monkeypatch
):
    images, labels = make_arrays(5)
    parts = [Dataset(images, labels, CLASS_NAMES)] * 2
    mine = sources.Source((32, 32, 3), lambda cfg: (10, lambda: parts))
    monkeypatch.setitem(sources.SOURCES, "cifar10", mine)
    _, run_dir = digits_run(dataset="cifar10", batch_size=4, epochs=1)
    with pytest.raises(DataError, match=r"cifar10_1 is not prepared in .*: prepare ci"):
        evaluate.main(EvaluateConfig(run=str(run_dir), dataset="cifar10_1"))
    prepare("v6")
    capsys.readouterr()
    evaluate.main(EvaluateConfig(run=str(run_dir), dataset="cifar10_1"))
    printed = capsys.readouterr().out.splitlines()
    assert printed[1].startswith("airplane ") and "on cifar10_1" in printed[0]
    assert printed[-1].endswith(
        f" n {COUNT} (test images differ from those of the training run)"
    )


@pytest.mark.parametrize("field", ["stream", "rebuild_data"])
def test_it_is_neither_streamed_nor_fetched(field):
    with pytest.raises(ConfigError, match=f"{field} does not apply to cifar10_1"):
        data.load_dataset("cifar10_1", **{field: True})


def test_other_data_under_its_name_are_refused(prepare):
    directory, *_ = prepare("v6")
    labels = directory / "label.labels.txt"
    labels.write_text("".join(f"{name}\n" for name in ["x", *CLASS_NAMES[1:]]))
    with pytest.raises(DataError, match=f"{directory} is not cifar10_1: it has uint8"):
        data.load_dataset("cifar10_1")
    labels.write_text("".join(f"{name}\n" for name in CLASS_NAMES))
    assert len(data.load_dataset("cifar10_1")[1]) == COUNT
    next(directory.glob("*test.array_record*")).write_bytes(b"x")
    with pytest.raises(DataError, match=f"{directory} is damaged"):
        data.load_dataset("cifar10_1")

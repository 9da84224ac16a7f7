"""Makes files like CIFAR's published ones from small arrays."""

import io
import json
import pickle
import tarfile

import numpy as np


def parts(arrays):
    """Yields (name, images, labels) of the six official files of CIFAR-10."""
    for index in range(5):
        chosen = slice(10 * index, 10 * index + 10)
        name = f"data_batch_{index + 1}"
        yield name, arrays.train[0][chosen], arrays.train[1][chosen]
    yield "test_batch", *arrays.test


def parts_100(arrays):
    """Yields (name, images, labels, coarse labels) of CIFAR-100's two files."""
    for split in ("train", "test"):
        yield split, *getattr(arrays, split), getattr(arrays.coarse, split)


def planes(images):
    return images.transpose(0, 3, 1, 2).reshape(len(images), 3072)


def pack(path, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def binary_files(arrays):
    return {
        f"cifar-10-batches-bin/{name}.bin": np.concatenate(
            [labels[:, None].astype(np.uint8), planes(images)], axis=1
        ).tobytes()
        for name, images, labels in parts(arrays)
    }


def binary_files_100(arrays):
    return {
        f"cifar-100-binary/{name}.bin": np.concatenate(
            [np.stack([coarse, labels], 1).astype(np.uint8), planes(images)], axis=1
        ).tobytes()
        for name, images, labels, coarse in parts_100(arrays)
    }


def python_files(arrays):
    return {
        f"cifar-10-batches-py/{name}": pickle.dumps(
            {b"data": planes(images), b"labels": labels.tolist()}, protocol=2
        )
        for name, images, labels in parts(arrays)
    }


def python_files_100(arrays):
    return {
        f"cifar-100-python/{name}": pickle.dumps(
            {
                b"data": planes(images),
                b"fine_labels": labels.tolist(),
                b"coarse_labels": coarse.tolist(),
            },
            protocol=2,
        )
        for name, images, labels, coarse in parts_100(arrays)
    }


def npm_files(arrays):
    from PIL import Image

    files = {}
    for name, images, _ in parts(arrays):
        stream = io.BytesIO()
        Image.fromarray(images.reshape(len(images), 1024, 3)).save(stream, "PNG")
        files[f"package/{name}.png"] = stream.getvalue()
    for split in ("train", "test"):
        labels = getattr(arrays, split)[1].tolist()
        files[f"package/{split}_lables.json"] = json.dumps(labels).encode()
    return files


def parquet(images, **labels):
    """Returns the content of a parquet file like those of the Hugging Face Hub."""
    import pyarrow
    import pyarrow.parquet
    from PIL import Image

    rows = []
    for index, image in enumerate(images):
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "PNG")
        rows.append({"bytes": stream.getvalue(), "path": f"{index}.png"})
    columns = {"img": rows, **{name: list(map(int, v)) for name, v in labels.items()}}
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), sink)
    return sink.getvalue()

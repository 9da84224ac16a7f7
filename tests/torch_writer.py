"""Writes files like those of torch.save, without torch."""

import io
import pickle
import struct
import zipfile
from collections import OrderedDict

import numpy as np


class Global:
    """Pickles as a reference to `module.name`, like one of torch's classes."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Writer(pickle._Pickler):
    """Writes Globals as names and Storages as persistent ids, as torch.save does."""

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Global):
            self.write(f"c{obj.module}\n{obj.name}\n".encode())
        else:
            super().save(obj, save_persistent_id)

    def persistent_id(self, obj):
        return obj.saved_id if isinstance(obj, Storage) else None


class Storage:
    def __init__(self, key, count, kind="FloatStorage", legacy=False):
        kind = Global("torch", kind)
        self.saved_id = ("storage", kind, key, "cpu", count) + ((None,) * legacy)


class Tensor:
    """Pickles as a call of torch._utils._rebuild_tensor_v2."""

    def __init__(self, storage, offset, size, stride, function="_rebuild_tensor_v2"):
        self.args = (storage, offset, size, stride, False, OrderedDict())
        self.function = function


def reduce_tensor(writer, tensor):
    writer.save(Global("torch._utils", tensor.function))
    writer.save(tensor.args)
    writer.write(pickle.REDUCE)


Writer.dispatch = {**pickle._Pickler.dispatch, Tensor: reduce_tensor}


def dumps(obj):
    stream = io.BytesIO()
    Writer(stream, protocol=2).dump(obj)
    return stream.getvalue()


VALUES = np.arange(6, dtype=np.float32)


def write_zip(path, content, storages=None, compression=zipfile.ZIP_STORED, **extra):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("net/data.pkl", content)
        for key, array in (storages or {"0": VALUES}).items():
            archive.writestr(f"net/data/{key}", array.tobytes())
        for name, text in extra.items():
            archive.writestr(f"net/{name}", text)
    return path


def legacy(content, storages, order=True, protocol=1001):
    parts = [pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(protocol, 2)]
    system = {"protocol_version": protocol, "little_endian": order, "type_sizes": {}}
    parts += [pickle.dumps(system, 2), content, pickle.dumps(list(storages), 2)]
    for array in storages.values():
        parts += [struct.pack("<q", array.size), array.tobytes()]
    return b"".join(parts)


def tensor(legacy=False, offset=0, size=(2, 3), stride=(3, 1), **options):
    return Tensor(Storage("0", 6, legacy=legacy), offset, size, stride, **options)


def save(path, content):
    """Writes `content`, with arrays as tensors, like torch.save."""
    storages = {}

    def convert(value):
        if isinstance(value, np.ndarray):
            key = str(len(storages))
            storages[key] = np.ascontiguousarray(value)
            kinds = {"float32": "FloatStorage", "int64": "LongStorage"}
            storage = Storage(key, value.size, kinds[value.dtype.name])
            steps = np.cumprod((1, *value.shape[:0:-1]))[::-1] if value.ndim else ()
            return Tensor(storage, 0, value.shape, tuple(map(int, steps)))
        if isinstance(value, list):
            return [convert(one) for one in value]
        if isinstance(value, dict):
            return type(value)({name: convert(one) for name, one in value.items()})
        return value

    write_zip(path, dumps(convert(content)), storages or {"0": VALUES})
    return path

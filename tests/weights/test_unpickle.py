"""Checks placeholders for what a pickle names other than tensors."""

import argparse
import collections
import functools
import io
import pathlib
import pickle
import sys

import numpy as np
import pytest
from torch_writer import VALUES, dumps, legacy, tensor, write_zip

from resnet_jax.errors import DataError
from resnet_jax.weights import adopt, pth, unpickle

BEFORE = b"\x80\x02}("  # a dictionary and a mark
WEIGHTS = b"X\x01\x00\x00\x00w"


@pytest.fixture
def read(tmp_path):
    """Returns a reader of pickles as torch.save writes them; storage "0" is VALUES."""

    def read(content, kind="zip"):
        path = tmp_path / "a.pth"
        if kind == "zip":
            return pth.read_zip(write_zip(path, content))
        path.write_bytes(legacy(content, {"0": VALUES}))
        return pth.read_legacy(path)

    return read


@pytest.fixture
def monitor(monkeypatch):
    """Records imports, opened files and calls during unpickling."""
    events = []
    watched = ("import", "os.", "subprocess.", "open", "exec", "compile", "socket.")

    def hook(event, args):
        if active and event.startswith(watched):
            events.append((event, args))

    active = []
    sys.addaudithook(hook)  # stays for the whole process, but is inactive

    class Monitor:
        def __enter__(self):
            active.append(True)
            return events

        def __exit__(self, *error):
            active.clear()

    return Monitor()


def with_weights(value):
    """{"w": a tensor, "x": what the opcodes `value` leave on the stack}."""
    head = dumps({"w": tensor()})
    return head[:-1] + b"X\x01\x00\x00\x00x" + value + b"s."


SYSTEM = b"cposix\nsystem\n"
CALL = b"(X\x04\x00\x00\x00truet"  # ("true",)
HOSTILE = {
    "REDUCE": SYSTEM + CALL + b"R",
    "REDUCE of eval": b"cbuiltins\neval\n(X\x03\x00\x00\x001+1tR",
    "REDUCE twice": SYSTEM + CALL + b"R" + CALL + b"R",
    "BUILD": SYSTEM + b")R}X\x08\x00\x00\x00__dict__" + SYSTEM + b"sb",
    "BUILD of a class": SYSTEM + b"}X\x08\x00\x00\x00__call__" + SYSTEM + b"sb",
    "BUILD of slots": SYSTEM + b")R(N}X\x04\x00\x00\x00codeX\x01\x00\x00\x00xstb",
    "NEWOBJ": SYSTEM + CALL + b"\x81",
    "NEWOBJ_EX": SYSTEM + CALL + b"}\x92",
    "INST": b"(X\x04\x00\x00\x00trueiposix\nsystem\n",
    "OBJ": b"(" + SYSTEM + b"X\x04\x00\x00\x00trueo",
    "STACK_GLOBAL": b"X\x05\x00\x00\x00posixX\x06\x00\x00\x00system\x93" + CALL + b"R",
    "APPEND": SYSTEM + b")RK\x01a",
    "APPENDS": SYSTEM + b")R(K\x01K\x02e",
    "SETITEM": SYSTEM + b")RK\x01K\x02s",
    "ADDITEMS": SYSTEM + b")R(K\x01\x90",
    "an import": b"cantigravity\nfly\n)R",
    "a key": b"}" + SYSTEM + b")RK\x01s",
    "a set": b"\x8f(" + SYSTEM + b")R\x90",
    "a class of torch": b"ctorch.hub\nload\n" + CALL + b"R",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_nothing_that_a_pickle_names_is_imported_or_called(kind, tmp_path, monitor):
    content = with_weights(HOSTILE[kind])
    path = write_zip(tmp_path / "a.pth", content)
    known = set(sys.modules)
    with monitor as events:
        found = unpickle.load(io.BytesIO(content), lambda key, dtype, count: VALUES)
    assert events == []
    assert set(sys.modules) == known
    np.testing.assert_array_equal(found["w"], VALUES.reshape(2, 3))
    assert "antigravity" not in sys.modules
    # The same holds when the file is read for its weights only.
    found = adopt.read_state_dict(path)
    np.testing.assert_array_equal(found["w"], VALUES.reshape(2, 3))


def test_the_monitor_sees_what_a_pickle_does(monitor):
    with monitor as events:
        pickle.loads(b"\x80\x02" + SYSTEM + b"(X\x04\x00\x00\x00truetR.")
    assert any(event == "os.system" for event, _ in events)
    events.clear()


@pytest.mark.parametrize("saved_id", ["posix", ("system", "true"), 5, (), ("a",) * 9])
@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_a_persistent_id_that_is_no_storage_is_refused(read, saved_id, kind, monitor):
    content = pickle.dumps(saved_id, 2)[:-1] + b"Q."
    with pytest.raises((ValueError, TypeError)), monitor as events:
        read(content, kind)
    assert not [event for event, _ in events if event == "os.system"]
    events.clear()


def test_a_function_of_ours_cannot_be_changed(read):
    """BUILD sets attributes, such as the defaults of a function."""
    function = b"ctorch._utils\n_rebuild_tensor\n"
    for state in (
        b"}X\x0b\x00\x00\x00__wrapped__K\x01s",
        b"N}X\x0c\x00\x00\x00__defaults__)s\x86",
    ):
        with pytest.raises(ValueError, match="of a function"):
            read(b"\x80\x02" + function + state + b"b.")


class Custom:
    def __init__(self):
        self.weights = [1]

    def __reduce__(self):
        return Custom, (), {"weights": self.weights}, iter([1, 2])


BESIDE = {
    "options": argparse.Namespace(lr=0.1, milestones=[30, 60]),
    "a counter": collections.Counter({30: 1}),
    "a default dictionary": collections.defaultdict(list, a=[1]),
    "a deque": collections.deque([1, 2], maxlen=5),
    "a path": pathlib.PurePosixPath("runs/a"),
    "a partial": functools.partial(int, base=2),
    "a NumPy scalar": np.float64(93.1),
    "a NumPy array": np.arange(3),
    "a set": {"conv1", "fc"},
    "bytes": b"\x00\x01",
    "a complex number": 3 + 4j,
    "a class": Custom,
    "an object with items": Custom(),
    "a function": np.mean,
}


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("kind", BESIDE)
def test_what_lies_beside_weights_is_passed_over(read, kind, protocol):
    value = pickle.dumps(BESIDE[kind], protocol)
    value = value[2:-1] if protocol == 2 else value[11:-1]  # without PROTO, FRAME
    found = read(with_weights(value))
    np.testing.assert_array_equal(found["w"], VALUES.reshape(2, 3))


def test_what_stands_for_an_object_says_its_class(read):
    found = read(
        with_weights(b"cargparse\nNamespace\n)\x81}X\x02\x00\x00\x00lrK\x01sb")
    )
    assert isinstance(found["x"], unpickle.StandIn)
    assert found["x"].origin == "argparse.Namespace"
    assert not hasattr(found["x"], "lr") and not found["x"].is_module
    module = b"cmodels\nNet\n)\x81}X\x08\x00\x00\x00_modules}sb"
    assert read(with_weights(module))["x"].is_module


def test_a_tensor_of_an_unknown_type_of_numbers_is_no_tensor(read):
    """It is refused only if it replaces a weight."""
    storage = b"(X\x07\x00\x00\x00storagectorch\nComplexFloatStorage\n"
    storage += b"X\x01\x00\x00\x00kX\x03\x00\x00\x00cpuK\x06tQ"
    call = (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00K\x06\x85K\x01\x85"
    )
    call += b"\x89}tR"
    assert isinstance(read(with_weights(call))["x"], unpickle.StandIn)


def nested(depth):
    return b")" + b"\x85" * depth  # a tuple in a tuple in ...


@pytest.mark.parametrize("end", [b"", b"}", b"ccollections\nOrderedDict\n"])
def test_what_is_nested_deeply_is_refused_before_it_is_hashed(read, end):
    """In C, unbounded depth would crash the process."""
    content = {
        b"": nested(400_000),
        b"}": b"}" + nested(400_000) + b"K\x01s",
    }.get(end, end + b"](" + nested(400_000) + b"K\x01\x86e\x85R")
    with pytest.raises(ValueError, match="too deeply"):
        read(b"\x80\x02" + content + b".")
    assert read(b"\x80\x02" + nested(100) + b".")


def test_keys_that_take_long_to_hash_are_refused(read):
    shared = b"\x80\x02)q\x00"
    for number in range(18):  # 2**18 references to one empty tuple
        shared += b"h" + bytes([number]) + b"h" + bytes([number]) + b"\x86q"
        shared += bytes([number + 1])
    # Each dictionary is dropped again, so no object becomes large.
    content = shared + b"}h\x12K\x01s0" * 100 + b"."
    with pytest.raises(ValueError, match="contain too many references to one another"):
        read(content)
    wide = b"".join(
        b"\x8a\x0a" + (k * (2**61 - 1)).to_bytes(10, "little") + b"N"
        for k in range(20, 40)
    )
    for keys in (b"}(" + wide + b"u", b"(" + wide + b"d"):
        with pytest.raises(ValueError, match="integers with many digits as keys"):
            read(b"\x80\x02" + keys + b".")
    with pytest.raises(ValueError, match="keys that are not strings"):
        pairs = b"".join(b"K" + bytes([k]) + b"N\x86" for k in range(20))
        read(b"\x80\x02ccollections\nOrderedDict\n](" + pairs + b"e\x85R.")
    # Such an integer is allowed as a value: states of random generators have them.
    value = b"\x80\x02}K\x01\x8a\x0a" + (2**70).to_bytes(10, "little") + b"s."
    assert read(value) == {1: 2**70}


def test_methods_that_a_pickle_hides_are_not_called(tmp_path):
    hidden = (
        b"\x80\x02ccollections\nOrderedDict\n)R}(U\x06valuesK\x01U\x05itemsK\x01ub."
    )
    path = write_zip(tmp_path / "a.pth", hidden)
    with pytest.raises(DataError, match="holds no tensors"):
        adopt.read_state_dict(path)

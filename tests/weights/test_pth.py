"""Reads files like those of torch.save, made by hand; tests/parity has torch's own."""

import pickle
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch_writer import VALUES, Storage, Tensor, dumps, legacy, tensor, write_zip

from resnet_jax.errors import DataError
from resnet_jax.weights import adopt, pth, unpickle


def test_a_zip_is_read(tmp_path):
    path = write_zip(tmp_path / "a.pth", dumps({"w": tensor()}), byteorder="little")
    np.testing.assert_array_equal(pth.read_zip(path)["w"], VALUES.reshape(2, 3))


def test_a_view_is_read(tmp_path):
    view = tensor(offset=1, size=(2, 2), stride=(1, 2))
    path = write_zip(tmp_path / "a.pth", dumps({"w": view}))
    expected = [[1, 3], [2, 4]]
    np.testing.assert_array_equal(pth.read_zip(path)["w"], expected)


def test_a_legacy_stream_is_read(tmp_path):
    path = tmp_path / "a.pth"
    content = dumps({"w": tensor(legacy=True)})
    path.write_bytes(legacy(content, {"0": VALUES}))
    assert path.read_bytes().startswith(pth.LEGACY_MAGIC)
    np.testing.assert_array_equal(pth.read_legacy(path)["w"], VALUES.reshape(2, 3))


@pytest.mark.parametrize(
    "wrong",
    [
        {"offset": 1},
        {"size": (2, 4), "stride": (3, 1)},
        {"stride": (4, 1)},
        {"offset": -1},
        {"stride": (-3, 1)},
        {"size": (6,)},
    ],
)
def test_a_tensor_outside_of_its_storage_is_refused(tmp_path, wrong):
    path = write_zip(tmp_path / "a.pth", dumps({"w": tensor(**wrong)}))
    with pytest.raises(ValueError, match="size"):
        pth.read_zip(path)


def test_an_expanded_tensor_takes_no_memory_and_is_no_tensor(tmp_path):
    """PyTorch saves it unchanged, but no network has such weights."""
    huge = tensor(size=(10**9, 10**9), stride=(0, 0))
    path = write_zip(tmp_path / "a.pth", dumps({"w": tensor(), "x": huge}))
    found = pth.read_zip(path)
    assert isinstance(found["x"], unpickle.StandIn) and found["w"].shape == (2, 3)


def test_an_empty_tensor_is_empty(tmp_path):
    path = write_zip(tmp_path / "a.pth", dumps({"w": tensor(size=(0, 3))}))
    assert pth.read_zip(path)["w"].shape == (0, 3)


def test_a_flipped_bit_in_a_zip_is_found(tmp_path):
    path = write_zip(tmp_path / "a.pth", dumps({"w": tensor()}))
    content = bytearray(path.read_bytes())
    content[content.index(VALUES.tobytes()) + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(zipfile.BadZipFile, match="Bad CRC"):
        pth.read_zip(path)


def test_a_zip_bomb_is_refused_unread(tmp_path, monkeypatch):
    zeros = np.zeros(10**6, np.float32)
    path = write_zip(tmp_path / "a.pth", dumps({}), {"0": zeros}, zipfile.ZIP_DEFLATED)
    monkeypatch.setattr(zipfile.ZipFile, "read", None)
    with pytest.raises(ValueError, match="a zip bomb"):
        pth.read_zip(path)


def test_a_storage_of_another_length_is_refused(tmp_path):
    path = write_zip(tmp_path / "a.pth", dumps({"w": tensor()}), {"0": VALUES[:5]})
    with pytest.raises(ValueError, match="storage 0 has 20 bytes"):
        pth.read_zip(path)
    path.write_bytes(legacy(dumps({"w": tensor(legacy=True)}), {"0": VALUES[:5]}))
    with pytest.raises(ValueError, match="storage 0 has 5 elements"):
        pth.read_legacy(path)
    huge = Tensor(Storage("0", 10**12, legacy=True), 0, (2, 3), (3, 1))
    path.write_bytes(legacy(dumps({"w": huge}), {"0": VALUES}))
    with pytest.raises(ValueError, match="1000000000000 elements does not fit in"):
        pth.read_legacy(path)


def test_other_archives_and_byte_orders_are_refused(tmp_path):
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "x" * 100)
    with pytest.raises(ValueError, match="torch.save did not write"):
        pth.read_zip(path)
    write_zip(path, dumps({"w": tensor()}), byteorder="big")
    with pytest.raises(ValueError, match="big-endian"):
        pth.read_zip(path)
    path.write_bytes(legacy(dumps({}), {}, order=False))
    with pytest.raises(ValueError, match="big-endian"):
        pth.read_legacy(path)
    path.write_bytes(legacy(dumps({}), {}, protocol=1002))
    with pytest.raises(ValueError, match="protocol"):
        pth.read_legacy(path)


def test_a_truncated_stream_is_refused_wherever_it_ends(tmp_path):
    path = tmp_path / "a.pth"
    whole = legacy(dumps({"w": tensor(legacy=True)}), {"0": VALUES})
    for length in range(20, len(whole), 7):
        path.write_bytes(whole[:length])
        with pytest.raises((EOFError, pickle.UnpicklingError, ValueError)):
            pth.read_legacy(path)


def put(number, width):
    """Returns a pickle of an empty dictionary with this memo index."""
    code = {1: b"q", 4: b"r"}[width] + number.to_bytes(width, "little")
    return b"\x80\x02}" + code + b"."


def test_a_large_number_of_an_object_takes_no_memory(tmp_path):
    path = write_zip(tmp_path / "a.pth", put(0, 1))
    assert pth.read_zip(path) == {}
    write_zip(path, put(2**31 - 1, 4))  # Python's reader would allocate 2**32 pointers
    with pytest.raises(ValueError, match="gives an object the number 2147483647"):
        pth.read_zip(path)
    path.write_bytes(legacy(put(2**31 - 1, 4), {}))
    with pytest.raises(ValueError, match="gives an object the number 2147483647"):
        pth.read_legacy(path)


def test_opcodes_of_other_objects_are_refused(tmp_path):
    for content in (b"\x80\x05\x97.", b"\x80\x02\x82\x01."):  # NEXT_BUFFER, EXT1
        path = write_zip(tmp_path / "a.pth", content)
        with pytest.raises(unpickle.RefusedError, match="it has the opcode"):
            pth.read_zip(path)


def test_a_length_beyond_the_end_of_a_stream_takes_no_memory(tmp_path):
    path = tmp_path / "a.pth"
    for opcode in (b"\x8d", b"\x8e", b"\x96"):  # BINUNICODE8, BINBYTES8, BYTEARRAY8
        text = b"\x80\x05" + opcode + (2**40).to_bytes(8, "little") + b"x."
        path.write_bytes(legacy(text, {}))
        with pytest.raises((ValueError, pickle.UnpicklingError)):
            pth.read_legacy(path)


@given(
    shape=st.lists(st.integers(0, 5), max_size=4),
    offset=st.integers(0, 6),
    legacy_file=st.booleans(),
    dtype=st.sampled_from([("FloatStorage", "<f4"), ("LongStorage", "<i8")]),
    transposed=st.booleans(),
)
def test_any_tensor_is_read_as_it_was(
    tmp_path_factory, shape, offset, legacy_file, dtype, transposed
):
    path = tmp_path_factory.mktemp("pth") / "a.pth"
    count = int(np.prod(shape))
    values = np.arange(count + offset, dtype=dtype[1])
    expected = values[offset:].reshape(shape)
    expected = expected.T if transposed else expected
    stride = tuple(step // values.itemsize for step in expected.strides)
    storage = Storage("0", len(values), dtype[0], legacy=legacy_file)
    content = dumps({"w": Tensor(storage, offset, expected.shape, stride)})
    if legacy_file:
        path.write_bytes(legacy(content, {"0": values}))
        found = pth.read_legacy(path)["w"]
    else:
        found = pth.read_zip(write_zip(path, content, {"0": values}))["w"]
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)


@given(
    size=st.lists(st.integers(-3, 2**40), max_size=3),
    stride=st.lists(st.integers(-3, 2**40), max_size=3),
    offset=st.integers(-3, 2**40),
)
def test_a_view_is_inside_of_its_storage_or_refused(
    tmp_path_factory, size, stride, offset
):
    path = tmp_path_factory.mktemp("pth") / "a.pth"
    view = Tensor(Storage("0", 6), offset, tuple(size), tuple(stride))
    write_zip(path, dumps({"w": view}))
    try:
        found = pth.read_zip(path)["w"]
    except ValueError:
        return
    if isinstance(found, unpickle.StandIn):
        return
    assert found.shape == tuple(size)
    assert set(found.flat) <= set(VALUES)


@given(content=st.binary(max_size=200), legacy_file=st.booleans())
def test_any_bytes_in_the_place_of_a_pickle_end_in_a_known_error(
    tmp_path_factory, content, legacy_file
):
    path = tmp_path_factory.mktemp("pth") / "a.pth"
    if legacy_file:
        path.write_bytes(legacy(content, {}))
    else:
        write_zip(path, content)
    try:
        adopt.read_state_dict(path)
    except DataError as error:
        assert "\n" not in str(error)


def laughs(depth, end):
    """Returns a tuple that has one tuple twice, and so on; then `end`."""
    code = b"\x80\x02)q\x00"
    for number in range(depth):
        code += b"h" + bytes([number]) + b"h" + bytes([number]) + b"\x86q"
        code += bytes([number + 1])
    return code + end + b"."


@pytest.mark.parametrize(
    "end",
    [
        b"Q",  # as a persistent id
        b"}h" + bytes([40]) + b"K\x01s",  # as a key
        b"ctorch\nFloatStorage\nh" + bytes([40]) + b"\x85R",  # as an argument
        b"",
    ],
)
def test_objects_that_hold_one_another_take_no_time(tmp_path, end):
    path = write_zip(tmp_path / "a.pth", laughs(40, end))
    with pytest.raises(ValueError, match="contain too many references to one another"):
        pth.read_zip(path)
    assert pth.read_zip(write_zip(path, laughs(3, b""))) == ((((), ()),) * 2,) * 2


def test_a_pickle_that_is_too_long_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(unpickle, "_MAX_OPCODES", 100)
    path = write_zip(tmp_path / "a.pth", b"\x80\x02" + b"]" * 200 + b".")
    with pytest.raises(ValueError, match="too long"):
        pth.read_zip(path)


def test_types_of_storages_cannot_be_called(tmp_path):
    path = write_zip(tmp_path / "a.pth", b"\x80\x02ctorch\nFloatStorage\nK\x05\x85R.")
    with pytest.raises(TypeError, match="not callable"):
        pth.read_zip(path)


@pytest.mark.parametrize("size", [("2", 3), (2.0, 3), (True, 3), ((2,), 3)])
def test_sizes_that_are_no_numbers_are_refused(tmp_path, size):
    path = write_zip(tmp_path / "a.pth", dumps({"w": tensor(size=size)}))
    with pytest.raises(ValueError, match="lacks a storage"):
        pth.read_zip(path)

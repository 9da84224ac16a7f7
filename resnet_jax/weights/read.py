"""Reads the weights files and folders that other tools write."""

import contextlib
import pickle
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from resnet_jax import files
from resnet_jax.errors import DataError, first_line
from resnet_jax.weights import pth, unpickle
from resnet_jax.weights.published import check_name
from resnet_jax.weights.unpickle import UnreadableError

WEIGHTS = "model.safetensors"
_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".th", ".tar", ".zip")
# Names of non-weights files written by accelerate, transformers and fairseq.
_OTHERS = re.compile(
    r"(optimizer|scheduler|sampler|scaler|random_states|rng_state|training_args)"
)
_PART = re.compile(r"-\d{5}-of-\d{5}\.")
# Weights compress poorly, so a file in a .zip archive may be at most this many times as
# large as the archive.
_MOST = 10

# The first bytes of files in unsupported formats, and the error message for each.
_MAGICS = {
    b"\x89HDF": "is an HDF5 (Keras) file: load it in Keras and save a state_dict",
    b"\x1f\x8b": "is compressed with gzip: unpack it first",
    b"BZh": "is compressed with bzip2: unpack it first",
    b"\xfd7zXZ": "is compressed with xz: unpack it first",
    b"7z\xbc\xaf": "is a 7z archive: unpack it first",
    b"\x93NUMPY": "is a single NumPy array, not a state_dict",
    b"GGUF": (
        "is a GGUF file, a format not used for ResNets: pass a .safetensors or .pth "
        "file"
    ),
}


class Content(NamedTuple):
    """The content of a weights file or, if it is an index, of its shards."""

    path: Path
    value: Any  # tensors are NumPy arrays


def read(source: str | Path) -> Content:
    """Reads a weights file, or the weights file in a folder.

    The file may be a .safetensors file, a file from torch.save (zip or legacy), an
    index of shards of either type, or a .zip archive that contains one of these. The
    content of the file, not its name, determines how it is read. The folder may be one
    that timm, transformers, accelerate or huggingface_hub wrote, or any other folder
    with a single weights file.

    Raises:
      DataError: if there is no such file, or if it is damaged or in an unsupported
        format. The message names the format.
    """
    path = Path(source)
    if path.is_dir():
        path = _find(path)
    return Content(path, _read_file(path))


def _find(folder: Path) -> Path:
    """Returns a folder's weights file: one with a usual name or else the only one."""
    if (folder / ".metadata").is_file() or list(folder.glob("*.distcp")):
        raise DataError(
            f"{folder} is a distributed checkpoint: convert it to a file with `python "
            "-m torch.distributed.checkpoint.format_utils dcp_to_torch DIR FILE`"
        )
    for name in (f"{WEIGHTS}.index.json", WEIGHTS, "pytorch_model.bin.index.json"):
        found = [folder / name] if (folder / name).is_file() else []
        found += sorted(folder.glob("model_[0-9]*.safetensors")) if found else []
        if found:
            return _only(folder, found)
    for pattern in ("*", "*/*", "*/*/*"):
        paths = [path for path in folder.glob(pattern) if path.is_file()]
        indices = [path for path in paths if path.name.endswith(".index.json")]
        weights = [
            path
            for path in paths
            if path.suffix in _SUFFIXES
            and not _OTHERS.match(path.name)
            and not _PART.search(path.name)
            and not path.name.startswith(".")
        ]
        if found := sorted(indices or weights):
            return _only(folder, found)
    raise DataError(f"{folder} holds no weights file: pass a .safetensors or .pth file")


def _only(folder: Path, found: Sequence[Path]) -> Path:
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in found[:5])
        raise DataError(f"{folder} has several weights files: pass one of {names}")
    return found[0]


def _read_file(path: Path, *, is_inside: bool = False) -> Any:
    try:
        with path.open("rb") as file:
            head = file.read(64)
        check_name(path)
    except OSError as error:
        raise DataError(
            f"weights {path} cannot be read ({error.strerror}): "
            "pass a .safetensors or .pth file"
        ) from None
    try:
        return _read_by_content(path, head, is_inside)
    except UnreadableError as error:
        raise DataError(f"{path} {error}") from None
    except unpickle.RefusedError as error:
        raise DataError(
            f"{path} was refused, and none of its code was run ({error}): save "
            "model.state_dict() instead"
        ) from None
    except (
        *(pickle.UnpicklingError, zipfile.BadZipFile, EOFError, ValueError, KeyError),
        *(TypeError, AttributeError, IndexError, OSError, OverflowError, MemoryError),
        *(zlib.error, RuntimeError),  # also raised for unknown compression methods
    ) as error:
        raise DataError(
            f"{path} is damaged or truncated: {first_line(error)}"
        ) from None


def _read_by_content(path: Path, head: bytes, is_inside: bool) -> Any:
    start = head.lstrip().lower()
    if not head:
        raise DataError(f"{path} is empty: fetch it again")
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise DataError(
            f"{path} is a web page, not a weights file: download the file itself"
        )
    if start.startswith(b"version https://git-lfs"):
        raise DataError(f"{path} is a Git LFS pointer: fetch it with `git lfs pull`")
    for magic, said in _MAGICS.items():
        if head.startswith(magic):
            raise DataError(f"{path} {said}")
    if head.startswith(pth.ZIP_MAGIC):
        return _read_zip(path, is_inside)
    if head.startswith(pth.LEGACY_MAGIC):
        return pth.read_legacy(path)
    if head[8:9] == b"{":
        return dict(_safetensors(path))
    if start.startswith(b"{"):
        return _read_index(path)
    if path.suffix == ".onnx" or (
        head[:1] == b"\x08" and head[2:3] in (b"\x12", b"\x3a")
    ):
        raise DataError(
            f"{path} is an ONNX file, which lacks PyTorch's parameter names: save "
            "the state_dict of the model that it was exported from"
        )
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        raise DataError(
            f"{path} is a pickle that torch.save did not write: load it with the code "
            "that wrote it and call torch.save(state_dict, FILE)"
        )
    with contextlib.suppress(OSError):
        import tarfile

        if tarfile.is_tarfile(path):
            raise DataError(f"{path} is a tar archive: unpack it first")
    raise DataError(f"{path} is neither a .safetensors nor a .pth file")


def _read_zip(path: Path, is_inside: bool = False) -> Any:
    with zipfile.ZipFile(path) as archive:
        infos = [info for info in archive.infolist() if not info.is_dir()]
        names = [info.filename for info in infos]
        parts = [name.split("/", 1)[-1] for name in names]
        if "constants.pkl" in parts or any(p.startswith("code/") for p in parts):
            raise DataError(
                f"{path} is a TorchScript program, not a state dict: save "
                "torch.jit.load(FILE).state_dict() instead"
            )
        if "data.pkl" in parts:
            return pth.read_zip(path)
        if "archive_format" in parts or any(p.endswith("model.json") for p in parts):
            raise DataError(
                f"{path} is a torch.export program, not a state dict: save "
                "torch.export.load(FILE).state_dict instead"
            )
        if names and all(name.endswith(".npy") for name in names):
            raise DataError(
                f"{path} is a NumPy .npz file: pass a .safetensors or .pth file"
            )
        if is_inside:
            raise UnreadableError("is an archive inside an archive: unpack it first")
        inside = [
            info
            for info in infos
            if Path(info.filename).suffix in _SUFFIXES[:-1]
            and not info.filename.startswith("__MACOSX/")
            and not _OTHERS.match(Path(info.filename).name)
        ]
        if len(inside) != 1:
            found = ", ".join(info.filename for info in inside[:5]) or "none"
            raise DataError(
                f"{path} is a .zip archive that does not contain exactly one weights "
                f"file ({found}): unpack it, and pass the file that you want"
            )
        info = inside[0]
        if info.file_size > _MOST * path.stat().st_size:
            raise UnreadableError("unpacks to many times its own size, like a zip bomb")
        with tempfile.TemporaryDirectory(prefix="resnet_jax-") as folder:
            whole = Path(folder, Path(info.filename).name)
            with archive.open(info) as source, whole.open("wb") as target:
                shutil.copyfileobj(source, target)
            try:
                return _read_file(whole, is_inside=True)
            except DataError as error:
                said = str(error).replace(str(whole), f"{path}: {info.filename}")
                raise DataError(said) from None


def _read_index(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays in all shards that a Hugging Face index file lists."""
    try:
        parts: dict[str, str] = files.read_json(path)["weight_map"]
        names = sorted(set(parts.values()))
        plain = (Path(name).name == name for name in names)
        if not names or not all(plain) or any(n.endswith(".json") for n in names):
            raise ValueError("it does not list files in its own folder")
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DataError(
            f"{path} is JSON, but not an index of weights: pass the .safetensors or "
            ".pth file"
        ) from None
    found: dict[str, np.ndarray] = {}
    for name in names:
        if not (path.parent / name).is_file():
            raise DataError(f"{path} needs {name}, which is not in the same folder")
        found |= _read_file(path.parent / name)
    if missing := sorted(parts.keys() - found.keys()):
        name = missing[0]
        raise DataError(f"{path} lists {name}, which {parts[name]} does not contain")
    return found


def _safetensors(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():
                yield name, file.get_tensor(name)
    except (AttributeError, TypeError) as error:  # NumPy lacks the type
        reason = first_line(error)
        said = f"contains tensors of a type that NumPy does not support: {reason}"
        raise UnreadableError(said) from None
    except SafetensorError as error:
        raise ValueError(str(error)) from None

"""PyTorch's state_dict, NumPy arrays by name, to Flax variables and back; no torch."""

import logging
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from resnet_jax.errors import DataError, first_line
from resnet_jax.files import check_sha256
from resnet_jax.models import torch_names
from resnet_jax.weights import pth

log = logging.getLogger(__name__)

StateDict = dict[str, np.ndarray]

_WRAPPERS = ("state_dict", "model_state_dict", "model")  # around a state_dict
_PREFIXES = ("module.", "_orig_mod.")  # DataParallel's, torch.compile's
_CLASSIFIERS = ("fc", "linear", "classifier", "head")
_SHOWN = 5  # names of each kind that an error lists


def _by_name(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of `variables`, in the tree's order, by PyTorch's names."""
    leaves = jax.tree_util.tree_leaves_with_path(dict(variables))
    return {torch_names.torch_name(path[1:]): leaf for path, leaf in leaves}


def _to_flax(array: np.ndarray) -> np.ndarray:
    """OIHW to HWIO, or a linear layer's weight transposed."""
    return array.transpose({4: (2, 3, 1, 0), 2: (1, 0)}.get(array.ndim))


def _to_torch(array: np.ndarray) -> np.ndarray:
    return array.transpose({4: (3, 2, 0, 1), 2: (1, 0)}.get(array.ndim))


def from_torch(
    state_dict: Mapping[str, np.ndarray],
    variables: Mapping[str, Any],
    skip: Sequence[str] = (),
) -> dict[str, Any]:
    """A new tree like `variables` with the values of `state_dict`.

    Args:
      state_dict: names to arrays in PyTorch's layouts. A classifier called linear,
        classifier or head and a shortcut called shortcut are recognised, which is
        logged; num_batches_tracked is passed over.
      variables: the model's {"params", "batch_stats"}, or their shapes
        (jax.eval_shape) where nothing is skipped; it gives names, shapes and dtypes.
      skip: modules that keep the template's values, such as "fc"; what `state_dict`
        has of them is passed over.

    Raises:
      DataError: names are missing or left over, or shapes differ; the first five of
        each are listed.
    """
    template = _by_name(variables)
    skipped = {name for name in template if torch_names.is_in(name, skip)}
    found = {
        name: np.asarray(value)
        for name, value in with_names_of(variables, state_dict).items()
        if name.rsplit(".", 1)[-1] != "num_batches_tracked"
        and not torch_names.is_in(name, skip)
    }
    wanted = template.keys() - skipped
    shapes = {name: _torch_shape(template[name]) for name in wanted}
    problems = _problems(
        missing=[name for name in template if name in wanted - found.keys()],
        unexpected=[name for name in found if name not in wanted],
        misshapen=[
            f"{name} {list(found[name].shape)} for {list(shapes[name])}"
            for name in template
            if name in wanted & found.keys() and found[name].shape != shapes[name]
        ],
    )
    if problems:
        raise DataError(f"the weights are not this network's: {problems}")
    values = []
    for name, leaf in template.items():
        if name in skipped:
            values.append(leaf)
            continue
        if not jnp.issubdtype(found[name].dtype, jnp.floating):
            raise DataError(f"{name} is {found[name].dtype}, not floating")
        values.append(jnp.asarray(_to_flax(found[name]), leaf.dtype))
    tree: dict[str, Any] = jax.tree.unflatten(
        jax.tree.structure(dict(variables)), values
    )
    return tree


def to_torch(variables: Mapping[str, Any]) -> StateDict:
    """The state_dict of `variables`: PyTorch's names and layouts.

    Values are the variables' own, bit for bit; num_batches_tracked, which Flax has not,
    is 0. torch's load_state_dict(strict=True) takes it as tensors.
    """
    state_dict: StateDict = {}
    for name, leaf in _by_name(variables).items():
        state_dict[name] = np.ascontiguousarray(_to_torch(np.asarray(leaf)))
        if name.endswith(".running_mean"):
            tracked = name.replace("running_mean", "num_batches_tracked")
            state_dict[tracked] = np.zeros((), np.int64)
    return state_dict


def _torch_shape(leaf: Any) -> tuple[int, ...]:
    return _to_torch(np.broadcast_to(np.zeros(()), leaf.shape)).shape


def _problems(**kinds: list[str]) -> str:
    parts = []
    for kind, found in kinds.items():
        if found:
            more = ", ..." if len(found) > _SHOWN else ""
            parts.append(f"{len(found)} {kind} ({', '.join(found[:_SHOWN])}{more})")
    return "; ".join(parts)


def with_names_of(
    variables: Mapping[str, Any], state_dict: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """`state_dict` with the names that `variables` have for classifier and shortcut."""
    template = set(_by_name(variables))
    renamed = dict(state_dict)
    roots = dict.fromkeys(name.split(".")[0] for name in template)
    ours = [root for root in roots if root in _CLASSIFIERS]
    theirs = [name for name in _CLASSIFIERS if f"{name}.weight" in renamed]
    pairs = [("shortcut", "downsample")]
    if len(ours) == len(theirs) == 1:
        pairs.append((theirs[0], ours[0]))
    for there, here in pairs:
        new = {
            name: ".".join(here if part == there else part for part in name.split("."))
            for name in renamed
        }
        if any(new[name] != name and new[name] in template for name in new):
            log.info("weights: %s is read as %s", there, here)
            renamed = {new[name]: value for name, value in renamed.items()}
    return renamed


def read_state_dict(path: str | Path) -> StateDict:
    """The arrays of a weights file, by PyTorch's names; the content says which kind.

    .safetensors, or torch.save's formats, zip and legacy. A wrapper (state_dict, model,
    model_state_dict) and a prefix (module., _orig_mod.) are taken off, which is logged.
    A name that ends in eight or more hexadecimal digits, as torch.hub's files do, is
    held against the file's sha256.

    Raises:
      DataError: the file is missing, empty, truncated, damaged, of another kind, or its
        pickle names anything but tensors (nothing of it is run).
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            head = file.read(64)
        published = re.search(r"-([0-9a-f]{8,64})\.[^.]+$", path.name)
        if published:
            check_sha256(path, published[1])
    except OSError as error:
        raise DataError(
            f"weights {path} cannot be read ({error.strerror}): "
            "name a .safetensors or .pth file"
        ) from None
    try:
        content = _read(path, head)
    except pth.RefusedError as error:
        raise DataError(
            f"{path} is refused, nothing of it was run: its pickle is not of weights "
            f"alone, {error}; save model.state_dict() instead"
        ) from None
    except (
        *(pickle.UnpicklingError, zipfile.BadZipFile, EOFError, ValueError, KeyError),
        *(TypeError, AttributeError, IndexError, OSError, OverflowError, MemoryError),
        RuntimeError,  # of an unknown compression too
    ) as error:
        raise DataError(
            f"{path} is damaged or truncated: {first_line(error)}"
        ) from None
    return _unwrap(path, content)


def _read(path: Path, head: bytes) -> Any:
    start = head.lstrip().lower()
    if not head:
        raise DataError(f"{path} is empty: fetch it again")
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        raise DataError(f"{path} is a web page, not weights: fetch the file itself")
    if start.startswith(b"version https://git-lfs"):
        raise DataError(f"{path} is a Git LFS pointer: fetch it with `git lfs pull`")
    if head.startswith(pth.ZIP_MAGIC):
        return pth.read_zip(path)
    if head.startswith(pth.LEGACY_MAGIC):
        return pth.read_legacy(path)
    if head[8:9] == b"{":
        return dict(_safetensors(path))
    raise DataError(f"{path} is neither a .safetensors nor a .pth file")


def _safetensors(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():
                yield name, file.get_tensor(name)
    except SafetensorError as error:
        raise ValueError(str(error)) from None


def _unwrap(path: Path, content: Any) -> StateDict:
    """The state_dict in what torch.save was given."""
    for name in _WRAPPERS:
        inner = content.get(name) if isinstance(content, dict) else None
        if isinstance(inner, dict):
            log.info("%s: weights under %r", path, name)
            content = inner
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}, not a state_dict")
    arrays = {str(k): v for k, v in content.items() if isinstance(v, np.ndarray)}
    if not arrays:
        raise DataError(f"{path} holds no tensors")
    while prefix := next(
        (p for p in _PREFIXES if all(n.startswith(p) for n in arrays)), ""
    ):
        log.info("%s: prefix %r taken off", path, prefix)
        arrays = {name.removeprefix(prefix): v for name, v in arrays.items()}
    return arrays

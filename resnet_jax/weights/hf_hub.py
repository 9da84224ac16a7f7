"""Downloads weights from repositories on the Hugging Face Hub."""

import errno
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from tqdm import tqdm

from resnet_jax.errors import ConfigError, DataError, first_line
from resnet_jax.files import file_digest

log = logging.getLogger(__name__)

PREFIX = "hf-hub:"
# Files that describe the weights.
_DESCRIPTIONS = ("config.json", "preprocessor_config.json")
# Training tools write files with these names in weights formats, but the files contain
# no weights.
_NOT_WEIGHTS = re.compile(
    r"(training_args|optimizer|scheduler|scaler|rng_state|random_states)[\w.-]*"
)
_SHOWN = 8  # maximum number of files in an error message


class _Silent(tqdm):  # type: ignore[misc]
    """A disabled progress bar, for files that are already in the cache."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options.pop("name", None)  # only huggingface_hub's bars have this option
        super().__init__(*args, **{**options, "disable": True})


def is_hub(source: str) -> bool:
    """Returns whether `source` names a Hub repository (as in "hf-hub:OWNER/NAME")."""
    return source.startswith(PREFIX)


def fetch(source: str) -> Path:
    """Returns the folder with a repository's weights, downloading them if necessary.

    Downloads use huggingface_hub, which reads HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE,
    HF_ENDPOINT and HF_TOKEN when it is first imported. Only the weights (see choose)
    and the JSON files that describe them are downloaded. If the request to the Hub
    fails, the cached copy is used, and a warning is logged. The sha256 of each large
    file is verified on every call.

    Args:
      source: "hf-hub:OWNER/NAME", or "hf-hub:OWNER/NAME@REVISION" for a branch, tag or
        commit other than "main".

    Raises:
      ConfigError: if `source` is malformed, or huggingface_hub is not installed.
      DataError: if the repository is not available, or has no weights.
    """
    hub = _library()
    repo, revision = _parse(hub, source)
    name = source.removeprefix(PREFIX)
    try:
        info = hub.HfApi().model_info(
            repo, revision=revision, timeout=hub.constants.HF_HUB_ETAG_TIMEOUT
        )
        listed = [str(sibling.rfilename) for sibling in info.siblings or ()]
    except Exception as error:  # the HTTP client's error types vary by version
        reason, folder = _reason(hub, name, error), _cached(hub, repo, revision)
        if folder is None or isinstance(error, hub.errors.RevisionNotFoundError):
            raise DataError(reason) from None
        if not hub.constants.HF_HUB_OFFLINE:
            log.warning("weights: %s; using the cached copy: %s", reason, folder)
        return _checked(folder, name)
    weights = choose(listed, name)
    wanted = [*weights, *(file for file in _DESCRIPTIONS if file in listed)]
    try:
        held = [hub.try_to_load_from_cache(repo, f, revision=info.sha) for f in wanted]
        is_cached = all(isinstance(path, str) for path in held)
        path = hub.snapshot_download(
            repo,
            revision=revision,
            allow_patterns=[_literal(file) for file in wanted],
            tqdm_class=_Silent if is_cached else None,
        )
    except Exception as error:
        raise DataError(_reason(hub, name, error)) from None
    return _checked(Path(path), name)


def choose(names: Iterable[str], where: str) -> tuple[str, ...]:
    """Returns the names of the files in a repository that contain its weights.

    The first choice is model.safetensors or, if it is split, its shards and their
    index. If there is no such file, a .safetensors file with another name is chosen,
    provided that it is the only one. Otherwise, the same rules apply to
    pytorch_model.bin and to other files whose names end in .bin, .pth or .pt. Optimizer
    states and files in subfolders are ignored.

    Args:
      names: the names of all files in the repository.
      where: the name of the repository in error messages.

    Raises:
      DataError: if there are no weights, if shards are missing, or if several files
        qualify.
    """
    names = sorted(names)
    files = [name for name in names if "/" not in name and not _is_other(name)]
    several: list[str] = []
    for stem, suffixes in (
        ("model", (".safetensors",)),
        ("pytorch_model", (".bin", ".pth", ".pt")),
    ):
        whole = f"{stem}{suffixes[0]}"
        if whole in files:
            return (whole,)
        if f"{whole}.index.json" in files:
            return (*_shards(files, stem, suffixes[0], where), f"{whole}.index.json")
        others = [name for name in files if name.endswith(suffixes)]
        if len(others) == 1:
            return (others[0],)
        several += others
    if several:
        raise DataError(
            f"{where} has several weights files ({_listed(several)}) but no "
            "model.safetensors: download the one that you want, and pass its path"
        )
    raise DataError(
        f"{where} has no weights (.safetensors, .bin or .pth) among its files ("
        f"{_listed(names) or 'none'}): choose another repository or revision"
    )


def _shards(files: list[str], stem: str, suffix: str, where: str) -> list[str]:
    """Returns the names of all shards, such as model-00001-of-00002.safetensors."""
    form = re.compile(rf"{stem}-(\d{{5}})-of-(\d{{5}}){re.escape(suffix)}")
    found = {name: match for name in files if (match := form.fullmatch(name))}
    totals = {int(match[2]) for match in found.values()}
    numbers = [int(match[1]) for match in found.values()]
    if len(totals) != 1 or sorted(numbers) != list(range(1, max(totals) + 1)):
        raise DataError(
            f"{where} has the index of a sharded {stem}{suffix}, but not all of its "
            f"shards (found: {_listed(sorted(found)) or 'none'}): choose another "
            "revision"
        )
    return list(found)


def _is_other(name: str) -> bool:
    return name.startswith(".") or _NOT_WEIGHTS.fullmatch(name) is not None


def _listed(names: list[str]) -> str:
    more = f", ... ({len(names)} in total)" if len(names) > _SHOWN else ""
    # File names in a repository can contain any characters.
    shown = (name if name.isprintable() else ascii(name) for name in names[:_SHOWN])
    return first_line(", ".join(shown)) + more if names else ""


def _library() -> ModuleType:
    """Imports and returns huggingface_hub."""
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "huggingface_hub":
            raise ConfigError(f"huggingface_hub cannot be used: {error}") from None
        raise ConfigError(
            f"{PREFIX}... needs huggingface_hub: pip install -e '.[hub]'"
        ) from None
    except Exception as error:  # for example, if HF_HUB_ETAG_TIMEOUT is not a number
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise ConfigError(f"huggingface_hub cannot be imported ({reason})") from None
    return huggingface_hub


def _parse(hub: ModuleType, source: str) -> tuple[str, str]:
    """Returns the repository and the revision that `source` names."""
    repo, at, revision = source.removeprefix(PREFIX).partition("@")
    revision = revision if at else "main"
    try:
        if repo.count("/") != 1:
            raise ValueError
        hub.utils.validate_repo_id(repo)
        # The cache uses the revision in a path, which must stay inside the cache.
        if not re.fullmatch(r"\w[\w.+/-]*", revision, re.ASCII) or any(
            part in ("", ".") or ".." in part for part in revision.split("/")
        ):
            raise ValueError
    except ValueError:  # from validate_repo_id, or raised above
        raise ConfigError(
            f"{source!r} does not name a repository on the Hub: write "
            f"{PREFIX}OWNER/NAME or {PREFIX}OWNER/NAME@REVISION"
        ) from None
    return repo, revision


def _cached(hub: ModuleType, repo: str, revision: str) -> Path | None:
    """Returns the cached folder of a revision, or None if it lacks the weights."""
    try:
        # The pattern matches nothing, so huggingface_hub does not require any files.
        found = hub.snapshot_download(
            repo, revision=revision, local_files_only=True, allow_patterns=["/"]
        )
        choose(os.listdir(found), repo)
    except Exception:  # whatever the error, there is no usable cached copy
        return None
    return Path(found)


def _checked(folder: Path, name: str) -> Path:
    """Returns `folder` after checking that its weights are complete and undamaged.

    Args:
      folder: the cached copy of the repository.
      name: the name of the repository in error messages.

    Raises:
      DataError: if weights are missing, or if a file's sha256 differs from the Hub's.
    """
    try:
        files = sorted(path.name for path in folder.iterdir() if path.is_file())
        for file in choose(files, f"{name} as cached in {folder}"):
            path = folder / file
            # A large file is a link to a blob whose name is the sha256 of its content.
            blob = Path(os.readlink(path)) if path.is_symlink() else path
            is_named = re.fullmatch("[0-9a-f]{64}", blob.name) is not None
            if is_named and file_digest(path) != blob.name:
                raise DataError(
                    f"{name}: {file} is damaged (its sha256 differs from the Hub's): "
                    f"remove {folder / blob} and try again"
                )
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error.strerror})") from None
    return folder


def _literal(name: str) -> str:
    """Returns a glob pattern that matches only `name`."""
    return re.sub(r"([*?[])", r"[\1]", name)


def _reason(hub: ModuleType, name: str, error: BaseException) -> str:
    """Returns a one-line explanation of why `name` could not be fetched."""
    errors, constants = hub.errors, hub.constants
    chain = _chain(error)
    host, cache = constants.ENDPOINT, constants.HF_HUB_CACHE
    for kind, reason in {
        errors.GatedRepoError: f"{host} requires a token with access to {name}: "
        "accept the repository's terms, and set HF_TOKEN",
        errors.RepositoryNotFoundError: f"{host} has no repository {name}, or the "
        "repository is private: check the name, or "
        "set HF_TOKEN",
        errors.RevisionNotFoundError: f"{host} has no such revision: {name}",
        errors.OfflineModeIsEnabled: f"{name} is not in the cache {cache}, and "
        "HF_HUB_OFFLINE is set: unset it to download the repository",
    }.items():
        if any(isinstance(cause, kind) for cause in chain):
            return reason
    for cause in chain:
        if isinstance(cause, errors.HfHubHTTPError):
            status = cause.response.status_code
            hint = ": check HF_TOKEN" if status in (401, 403) else ": try again"
            return f"{host} returned HTTP status {status} for {name}{hint}"
    cause = chain[-1]
    if isinstance(cause, OSError) and _is_of_disk(cause, cache):
        return (
            f"the cache {cache} cannot be written to ({cause.strerror}): set "
            "HF_HUB_CACHE to another folder"
        )
    what = f"{type(cause).__name__}: {first_line(cause)}"
    return f"{name} cannot be fetched from {host} ({what}): try again"


def _is_of_disk(error: OSError, cache: str) -> bool:
    """Returns whether `error` means that the folder `cache` cannot be written to."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):  # raised without a file name
        return True
    path = str(error.filename or "")
    return bool(path) and (path.startswith(cache) or cache.startswith(path))


def _chain(error: BaseException) -> list[BaseException]:
    """Returns `error` followed by its chain of causes."""
    chain = [error]
    while chain[-1].__cause__ is not None and chain[-1].__cause__ not in chain:
        chain.append(chain[-1].__cause__)
    return chain

"""Readable class names for folders with names like n01440764."""

import logging
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from resnet_jax.errors import DataError, first_line

log = logging.getLogger(__name__)

FILE = "classes.txt"  # in DATA_DIR


def find(data_dir: Path, named: Path | None, folders: Sequence[str]) -> tuple[str, ...]:
    """Returns the class names of `folders`, from a file or from the folder names.

    Args:
      named: the file with the names. If None, data_dir/classes.txt is used if it
        exists, and a class that it does not list keeps its folder's name.

    Raises:
      DataError: if the file cannot be read or gives a class two names, or if `named`
        lacks a class.
    """
    path = data_dir / FILE if named is None else named
    if named is None and not path.is_file():
        return tuple(folders)
    found = read(path, folders)
    missing = [folder for folder in folders if folder not in found]
    if missing and named is not None:
        raise DataError(
            f"{path} has no line for class {missing[0]}: add the line "
            f"'{missing[0]} NAME'"
        )
    if missing:
        log.warning(
            "%s has no line for %d of %d classes (the first is %s): these classes "
            "keep their folder names",
            *(path, len(missing), len(folders), missing[0]),
        )
    names = [found.get(folder, folder) for folder in folders]
    often = Counter(names)
    return tuple(
        name if often[name] == 1 else f"{name} ({folder})"
        for name, folder in zip(names, folders, strict=True)
    )


def read(path: Path, folders: Sequence[str]) -> dict[str, str]:
    """Reads {folder: name} from lines of the form "folder name".

    The separator may be a tab. Lines for other folders are ignored. If a line gives
    several names separated by commas, as in ImageNet's LOC_synset_mapping.txt, the
    first is used. If a line gives no name, the name of the folder is used.

    Raises:
      DataError: if the file cannot be read or gives a folder two names.
    """
    try:
        text = unicodedata.normalize("NFC", path.read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise DataError(
            f"{path}: class names cannot be read ({reason}): provide a text file "
            "with one line for each class: the folder, a space, and the class name"
        ) from None
    known, found = set(folders), dict[str, str]()
    for line in text.split("\n"):
        line = line.strip()
        # Folder names may contain spaces, so the longest matching folder name is used.
        ends = [match.start() for match in re.finditer(r"\s+|$", line)]
        folder = next((line[:e] for e in reversed(ends) if line[:e] in known), None)
        if folder is None:
            continue
        name = line[len(folder) :].split(",")[0].strip() or folder
        if found.setdefault(folder, name) != name:
            raise DataError(
                f"{path} names class {folder} both {found[folder]} and {name}: keep "
                "only one of these lines"
            )
    return found

"""Loads a tensorflow-datasets data set from its directory, or fetches it."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from resnet_jax.config import DataConfig
from resnet_jax.data import cache, readers, tfds
from resnet_jax.data.dataset import Dataset
from resnet_jax.data.tfds import Arrays, Published
from resnet_jax.errors import ConfigError, DataError

log = logging.getLogger(__name__)


def not_rebuilt(name: str) -> ConfigError:
    """Returns the error to raise if rebuild_data is set but unsupported for `name`."""
    return ConfigError(
        "rebuild_data is only for cifar10 and cifar100: this library does not prepare "
        f"{name}"
    )


@dataclass(frozen=True)
class Prepared:
    """Describes how to obtain a data set.

    Attributes:
      published: the published facts about the data set.
      fetch: a function that maps the data directory to the arrays. It is called if the
        data directory does not contain the prepared data. If `write` is given and
        DataConfig.data_source names a source, the source is passed as a second
        argument.
      write: a function that saves fetched arrays in a prepared directory and returns
        the directory. Its arguments are the arrays, the data directory, and the
        directory to replace (or None). If `write` is None, the arrays are not saved.
    """

    published: Published
    fetch: Callable[..., Arrays] | None = None
    write: Callable[[Arrays, Path, Path | None], Path] | None = None

    def load(self, cfg: DataConfig) -> tuple[Dataset, Dataset]:
        """Returns the data sets (train, test), in memory or streamed.

        Raises:
          DataError: if no source can be reached, or if the prepared data are damaged.
        """
        if cfg.stream:
            found = self._find(cfg.data_dir, cfg.rebuild_data, cfg.data_source)
            if isinstance(found, Arrays):
                raise DataError(
                    f"{self.published.name} can be streamed only from a prepared "
                    "directory: specify one with --data-dir"
                )
            names = tfds.class_names(found)
            train, test = (
                Dataset(*readers.from_records(found, split, self.published), names)
                for split in ("train", "test")
            )
            return train, test
        arrays = self.arrays(
            cfg.data_dir, rebuild=cfg.rebuild_data, source=cfg.data_source
        )
        known = self.published.sha256
        train, test = (
            Dataset(*part, arrays.class_names, known.get(split, (None,))[0])
            for split, part in (("train", arrays.train), ("test", arrays.test))
        )
        return train, test

    def arrays(
        self,
        data_dir: str | Path | None = None,
        *,
        rebuild: bool = False,
        source: str = "auto",
    ) -> Arrays:
        """Returns the arrays from `source` (by default, the first available one).

        Fetched data are written to a prepared directory, so they are fetched only once.
        With `rebuild`, the data are always fetched, and the directory is replaced.

        Raises:
          ConfigError: if `rebuild` is set but this library does not prepare the data.
          DataError: if no source can be reached, or if the prepared data are damaged.
        """
        name = self.published.name
        found = self._find(data_dir, rebuild, source)
        if isinstance(found, Arrays):
            return found
        arrays = cache.load(name, found)
        if arrays is not None and self.published.find_fault(arrays) is None:
            log.info("%s: reading from the cache of %s", name, found)
            return arrays
        log.info("%s: reading %s", name, found)
        arrays = tfds.read(found)
        fault = self.published.find_fault(arrays)
        if fault is not None:
            raise tfds.damaged(found, fault)
        cache.save(name, found, arrays)
        return arrays

    def _find(
        self, data_dir: str | Path | None, rebuild: bool, source: str
    ) -> Path | Arrays:
        """Returns the prepared directory, or the arrays if they were not saved."""
        name = self.published.name
        if rebuild and self.write is None:
            raise not_rebuilt(name)
        home = Path(data_dir or tfds.default_data_dir())
        directory = tfds.find(name, home)
        if directory is not None and not rebuild:
            return directory
        if self.fetch is None:
            raise DataError(
                f"{name} is not prepared in {home}: prepare it there with "
                "tensorflow-datasets, or use --data-dir to specify the folder that "
                "contains it"
            )
        if source != "auto" and self.write is None:
            raise ConfigError(
                f"data_source is only for cifar10 and cifar100, not for {name}"
            )
        arrays = self.fetch(home) if source == "auto" else self.fetch(home, source)
        fault = self.published.find_fault(arrays)
        if fault is not None:
            raise DataError(f"{name}: {fault}; fetch it again")
        if self.write is None:
            return arrays
        try:
            log.info("%s: writing %s for later runs", name, home / name)
            return self.write(arrays, home, directory)
        except OSError as error:
            log.warning("%s cannot be saved in %s (%s)", name, home, error.strerror)
            return arrays

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
    """Returns the error for rebuild_data of a data set that is not prepared here."""
    return ConfigError(
        f"rebuild_data is for cifar10 and cifar100: {name} is not prepared here"
    )


@dataclass(frozen=True)
class Prepared:
    """How to obtain one data set.

    Attributes:
      published: the published facts about it.
      fetch: returns the arrays if a data directory, its argument, has no prepared ones;
        with `write`, it also takes the source, if DataConfig.data_source chooses one.
      write: prepares fetched arrays; takes them, the data directory and the directory
        to replace, if any. None leaves them unprepared.
    """

    published: Published
    fetch: Callable[..., Arrays] | None = None
    write: Callable[[Arrays, Path, Path | None], Path] | None = None

    def load(self, cfg: DataConfig) -> tuple[Dataset, Dataset]:
        """Returns (train, test), in memory or to be streamed.

        Raises:
          DataError: no source can be reached, or the prepared directory is damaged.
        """
        if cfg.stream:
            found = self._find(cfg.data_dir, cfg.rebuild_data, cfg.data_source)
            if isinstance(found, Arrays):
                raise DataError(
                    f"{self.published.name} can be streamed only from a prepared "
                    "directory: name one with --data-dir"
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
        """Returns the arrays from the first source that has them, or from `source`.

        Fetched data are written once as a prepared directory; `rebuild` always
        fetches, and replaces it.

        Raises:
          ConfigError: `rebuild` of a data set that is not prepared here.
          DataError: no source can be reached, or the prepared directory is damaged.
        """
        name = self.published.name
        found = self._find(data_dir, rebuild, source)
        if isinstance(found, Arrays):
            return found
        arrays = cache.load(name, found)
        if arrays is not None and self.published.find_fault(arrays) is None:
            log.info("%s: from the cache of %s", name, found)
            return arrays
        log.info("%s: from %s", name, found)
        arrays = tfds.read(found)
        fault = self.published.find_fault(arrays)
        if fault is not None:
            raise tfds.damaged(found, fault)
        cache.save(name, found, arrays)
        return arrays

    def _find(
        self, data_dir: str | Path | None, rebuild: bool, source: str
    ) -> Path | Arrays:
        """Returns the prepared directory, or fetched arrays if it cannot be written."""
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
                "tensorflow-datasets, or name its directory with --data-dir"
            )
        if source != "auto" and self.write is None:
            raise ConfigError(f"data_source is for cifar10 and cifar100, not {name}")
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

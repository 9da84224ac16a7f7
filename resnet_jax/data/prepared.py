"""A data set that tensorflow-datasets knows: from its directory, or fetched."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from resnet_jax.config import DataConfig
from resnet_jax.data import cache, stream, tfds
from resnet_jax.data.dataset import Dataset
from resnet_jax.data.tfds import Arrays, Published
from resnet_jax.errors import ConfigError, DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """How one data set is had.

    Attributes:
      fetch: given a data directory, the arrays if they are not prepared there.
      write: prepares what was fetched, given arrays, the data directory and what is to
        be replaced; None leaves it as it was fetched.
    """

    published: Published
    fetch: Callable[[Path], Arrays] | None = None
    write: Callable[[Arrays, Path, Path | None], Path] | None = None

    def load(self, cfg: DataConfig) -> tuple[Dataset, Dataset]:
        """(train, test), in memory or to be streamed.

        Raises:
          DataError: no source can be reached, or the prepared one is damaged.
        """
        if cfg.stream:
            found = self._find(cfg.data_dir, cfg.rebuild_data)
            if isinstance(found, Arrays):
                raise DataError(
                    f"{self.published.name} cannot be streamed: it could not be "
                    "written; --data-dir"
                )
            names = tfds.class_names(found)
            train, test = (
                Dataset(*stream.from_records(found, split, self.published), names)
                for split in ("train", "test")
            )
            return train, test
        arrays = self.arrays(cfg.data_dir, rebuild=cfg.rebuild_data)
        known = self.published.sha256
        train, test = (
            Dataset(*part, arrays.class_names, known.get(split, (None,))[0])
            for split, part in (("train", arrays.train), ("test", arrays.test))
        )
        return train, test

    def arrays(
        self, data_dir: str | Path | None = None, *, rebuild: bool = False
    ) -> Arrays:
        """The arrays from the first source that has them.

        What had to be fetched is written once as a prepared directory; with `rebuild`
        it is fetched whatever there is, and replaces that.

        Raises:
          DataError: no source can be reached, or the prepared one is damaged.
        """
        name = self.published.name
        found = self._find(data_dir, rebuild)
        if isinstance(found, Arrays):
            return found
        arrays = cache.load(name, found)
        if arrays is not None and self.published.find_fault(arrays) is None:
            log.info("%s: from %s, by way of its cache", name, found)
            return arrays
        log.info("%s: from %s", name, found)
        arrays = tfds.read(found)
        fault = self.published.find_fault(arrays)
        if fault is not None:
            raise tfds.damaged(found, fault)
        cache.save(name, found, arrays)
        return arrays

    def _find(self, data_dir: str | Path | None, rebuild: bool) -> Path | Arrays:
        """The prepared directory, or what was fetched and is not written."""
        name = self.published.name
        if rebuild and self.write is None:
            raise ConfigError(
                f"rebuild_data is for cifar10: {name} is not prepared here"
            )
        home = Path(data_dir or tfds.default_data_dir())
        directory = tfds.find(name, home)
        if directory is not None and not rebuild:
            return directory
        if self.fetch is None:
            raise DataError(
                f"{name} is not prepared in {home}: prepare it with "
                "tensorflow-datasets there, or name its directory with --data-dir"
            )
        arrays = self.fetch(home)
        fault = self.published.find_fault(arrays)
        if fault is not None:
            raise DataError(f"{name}: {fault}: fetch it again")
        if self.write is None:
            return arrays
        try:
            log.info("%s: writing %s, once", name, home / name)
            return self.write(arrays, home, directory)
        except OSError as error:
            log.warning("%s cannot be kept in %s (%s)", name, home, error.strerror)
            return arrays

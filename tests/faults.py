"""Faults to inject into a process; each is a callable that installs one.

They can be pickled to another process, and patch only public names: Run.record, the
table of sources, the checkpoint manager.
"""

import os
import shutil
import signal
import time
from dataclasses import dataclass
from typing import Any


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


@dataclass(frozen=True)
class AtStep:
    """Calls action(*args) when step `number` is done, before it is recorded."""

    number: int
    action: Any
    args: tuple = ()

    def __call__(self):
        from resnet_jax.run.run import Run

        before = Run.record

        def record(run, state, sums):
            if int(state.step) == self.number:
                self.action(*self.args)
            before(run, state, sums)

        Run.record = record


@dataclass(frozen=True)
class SpoilStep:
    """Makes the loss, or the parameters, of step `number` NaN."""

    number: int
    what: str

    def __call__(self):
        import jax

        from resnet_jax.run.run import Run

        before = Run.record

        def record(run, state, sums):
            if int(state.step) == self.number:
                if self.what == "loss":
                    sums = {**sums, "loss": sums["loss"] * float("nan")}
                else:
                    bad = jax.tree.map(lambda x: x * float("nan"), state.params)
                    state = state.replace(params=bad)
            before(run, state, sums)

        Run.record = record


def limit_files(size):
    """Limits the size of files that the process may write, to simulate a full disk."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, -1))


def wait_for_saves():
    """Waits until no save is in progress."""
    for manager in _MANAGERS:
        manager.wait_until_finished()


_MANAGERS: list[Any] = []


def know_managers():
    """Records orbax's managers, for wait_for_saves."""
    import orbax.checkpoint as ocp

    before = ocp.CheckpointManager.__init__

    def init(manager, *args, **options):
        before(manager, *args, **options)
        _MANAGERS.append(manager)

    ocp.CheckpointManager.__init__ = init


def limit_after_saves(size):
    wait_for_saves()
    limit_files(size)


def remove_after_saves(folder):
    """Waits for a save in progress, because orbax would create the folder again."""
    wait_for_saves()
    shutil.rmtree(folder)


def kill_after_saves():
    wait_for_saves()
    kill()


def say_and_sleep():
    print("here", flush=True)
    time.sleep(600)


def flip_a_pixel():
    """Makes the training images differ by one bit."""
    from resnet_jax.data import sources

    source = sources.SOURCES["digits"]

    def open_(cfg):
        num_classes, load = source.open(cfg)

        def other():
            train, test = load()
            train.images[3, 4, 5] ^= 1
            return train, test

        return num_classes, other

    sources.SOURCES["digits"] = source._replace(open=open_)


def another_jax():
    """Makes JAX report version 99."""
    import importlib.metadata

    before = importlib.metadata.version
    importlib.metadata.version = lambda name: "99" if name == "jax" else before(name)


def clock_goes_back():
    """Sets the clock back by ten days."""
    clock = time.time
    time.time = lambda: clock() - 864_000


@dataclass(frozen=True)
class DataFail:
    """Makes the data unavailable."""

    message: str

    def __call__(self):
        from resnet_jax.data import sources
        from resnet_jax.errors import DataError

        def load():
            raise DataError(self.message)

        source = sources.SOURCES["digits"]
        sources.SOURCES["digits"] = source._replace(open=lambda cfg: (10, load))


@dataclass(frozen=True)
class Published:
    """Makes other images pass for the published CIFAR-10, and prevents downloads."""

    num_examples: dict
    sha256: dict

    def __call__(self):
        from resnet_jax import download
        from resnet_jax.data import cifar

        cifar.CIFAR10.num_examples.update(self.num_examples)
        cifar.CIFAR10.sha256.update(self.sha256)
        download.fetch = None


@dataclass(frozen=True)
class Impatient:
    """Shortens JAX's heartbeat timeout, which is 100 s."""

    seconds: int

    def __call__(self):
        import functools

        import jax

        jax.distributed.initialize = functools.partial(
            jax.distributed.initialize, heartbeat_timeout_seconds=self.seconds
        )


@dataclass(frozen=True)
class SignalIn:
    """Sends the process a signal when `name` of `module` is called, and waits."""

    module: str
    name: str
    number: int

    def __call__(self):
        import importlib

        def signalling(*args, **options):
            os.kill(os.getpid(), self.number)
            time.sleep(60)

        setattr(importlib.import_module(self.module), self.name, signalling)


@dataclass(frozen=True)
class SignalInData:
    """Sends the process a signal when the data are loaded, and waits."""

    number: int

    def __call__(self):
        from resnet_jax.data import sources

        def load():
            os.kill(os.getpid(), self.number)
            time.sleep(60)

        source = sources.SOURCES["digits"]
        sources.SOURCES["digits"] = source._replace(open=lambda cfg: (10, load))


def kill_in_a_save():
    """Kills the process in the middle of the checkpoint of step 6."""
    import orbax.checkpoint as ocp

    save = ocp.CheckpointManager.save

    def half(manager, step, **options):
        save(manager, step, **options)
        if step == 6:
            kill()

    ocp.CheckpointManager.save = half


def stick_in_compiling():
    """Calls a C function that does not return, like a long compilation.

    usleep would return on a signal, so the signal is left to other threads.
    """
    import ctypes

    from resnet_jax import training

    def stuck(*args, **options):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        print("stuck", flush=True)
        ctypes.CDLL(None).usleep(60_000_000)

    training.compile_step = stuck


def leave_a_half_written_save(folder):
    """Leaves a folder of an unfinished save, as orbax may after an error."""
    os.mkdir(folder)

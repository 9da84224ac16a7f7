"""A training run: its directory, its progress, and how it resumes.

Resuming is exact: a checkpoint contains the whole state (step, parameters, running
statistics, optimizer state, moving average) and the sums of the epoch so far; the keys
of a step are folded from the seed and the step (training/step.py), and the order of an
epoch is a function of (seed, epoch) (data/dataset.py). Run.restore (run.py) reads the
state and the step; Progress.epoch and Progress.steps (progress.py) derive the epoch and
its first remaining step; Loader.train (data/loader.py) starts the epoch at that step.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""A training run: its directory, its progress, and how it resumes.

Resuming is exact. A checkpoint contains the whole state (step, parameters, running
statistics, optimizer state and moving average) and the sums of the epoch so far. The
keys of a step are derived from the seed and the step (training/step.py), and the order
of an epoch is a function of the seed and the epoch (data/dataset.py).

Run.restore (run.py) reads the state and the step. From the step, Progress.epoch and
Progress.steps (progress.py) derive the epoch and its first remaining step, at which
Loader.train (data/loader.py) starts the epoch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

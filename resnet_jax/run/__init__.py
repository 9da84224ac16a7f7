"""A training run: its directory, its progress, and how it resumes.

Resuming is exact. A checkpoint contains the whole state (step, parameters, running
statistics, optimizer state and moving average) and the metric sums of the epoch so far.
The PRNG keys for a step depend only on the seed and the step (training/step.py), and
the order of an epoch's images depends only on the seed and the epoch (data/dataset.py).

Run.restore (run.py) reads the state and the step. Progress.epoch and Progress.steps
(progress.py) derive the epoch and its first remaining step from the restored step, and
Loader.train (data/loader.py) starts the epoch at that step.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""A training run: its directory, its progress, and how it resumes.

A resume is exact: a checkpoint has the whole state (step, parameters, statistics,
optimizer, moving average) and the sums of the epoch so far; the keys of a step are
folded from the seed and the step (training/step.py), and the order of an epoch is a
function of (seed, epoch) (data/dataset.py). Run.restore (run.py) reads the state and
the step; Progress.epoch and Progress.steps (progress.py) derive the epoch and the first
step in it; Loader.train (data/loader.py) starts the epoch's order there.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""A run: its directory, how far it is, and how it goes on.

A resume is exact: a checkpoint has the whole state (step, parameters, statistics,
optimizer, average) and the sums of the epoch so far; the keys of a step are folded from
the seed and the step (training/step.py), and the order of an epoch is a function of
(seed, epoch) (data/dataset.py). Run.restore (run.py) reads the state and the step;
Progress.epoch and Progress.steps (progress.py) make of the step the epoch and the first
step in it; Loader.train (data/loader.py) begins the epoch's order there.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

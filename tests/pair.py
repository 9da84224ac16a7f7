"""Runs scenarios of training in two processes with two devices each.

    python tests/pair.py INDEX ADDRESS ROOT ARGUMENTS...

Writes ROOT/INDEX.json, which has for each scenario its exit code and message, what was
logged, the number of examples that each evaluation counted, and whether the loader held
the data.
"""

import contextlib
import itertools
import json
import logging
import os
import signal
import sys
from pathlib import Path
from unittest import mock

import jax
import spawn
from jax.experimental import multihost_utils

from resnet_jax import fields, training
from resnet_jax.commands import train
from resnet_jax.commands.command_line import parse_recipe
from resnet_jax.data import sources
from resnet_jax.devices import mesh
from resnet_jax.errors import DataError, UserError
from resnet_jax.run.checkpoints import Checkpoints
from resnet_jax.run.run import Run
from resnet_jax.training import evaluation
from resnet_jax.weights import pretrained

index, address, root = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
found: dict = {}
told, counts, held = [], [], []


class Listener(logging.Handler):
    def emit(self, record):
        told.append(record.getMessage())


def scenario(recipe, name, *patches, run_dir=None, **values):
    """Trains with patches (process, patch); None means both processes."""
    print(name, file=sys.stderr, flush=True)
    for notes in (told, counts, held):
        notes.clear()
    cfg = fields.replace(recipe, workdir=str(root / (run_dir or name)), **values)
    code, message = 0, ""
    with contextlib.ExitStack() as stack:
        for process, patch in patches:
            if process in (index, None):
                stack.enter_context(patch)
        try:
            train.main(cfg)
        except UserError as error:
            code, message = error.exit_code, str(error)
    found[name] = {
        "code": code,
        "message": message,
        "told": list(told),
        "counts": list(counts),
        "held": list(held),
    }


def fails(owner, name, message):
    return mock.patch.object(owner, name, side_effect=DataError(message))


def no_data(message):
    def open_(cfg):
        raise DataError(message)

    source = sources.SOURCES["digits"]._replace(open=open_)
    return mock.patch.dict(sources.SOURCES, digits=source)


def signalled(owner, name, number):
    """Sends SIGTERM before call `number` of a function."""
    function, numbers = getattr(owner, name), itertools.count(1)

    def signalling(*args, **options):
        if next(numbers) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return function(*args, **options)

    return mock.patch.object(owner, name, signalling)


def watch():
    """Records evaluations, and compiles once for data on and off the devices."""
    evaluate, record = evaluation.evaluate, Run.record
    compile_step, compiled = training.compile_step, {}

    def counting(*args):
        sums = evaluate(*args)
        counts.append(int(sums["count"]))
        return sums

    def once(function, state, loader, key):
        is_held = bool(loader.source(loader.splits.train))
        held.append(is_held)
        if is_held not in compiled:
            compiled[is_held] = compile_step(function, state, loader, key)
        return compiled[is_held]

    def poisoned(run, state, sums):
        if int(state.step) == 4:
            bad = jax.tree.map(lambda x: x * float("nan"), state.params)
            state = state.replace(params=bad)
        record(run, state, sums)

    evaluation.evaluate, training.compile_step = counting, once
    return mock.patch.object(Run, "record", poisoned)


def main():
    jax.config.update("jax_num_cpu_devices", 2)
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(address, 2, index)
    spawn.make_small()
    recipe = parse_recipe(None, [*spawn.ARGUMENTS, *sys.argv[4:]])
    logging.getLogger("resnet_jax").addHandler(Listener())
    poisoned = watch()
    kept = mock.patch.object(
        pretrained, "begin_from", lambda variables, *a, **options: variables
    )
    no_room = mock.patch.object(Checkpoints, "save", lambda self, *args: "no room")
    small = mock.patch.object(mesh, "fits", lambda *args: False)
    minutes = [1e9, 0.0][index]

    scenario(recipe, "describe", (1, no_data("no such folder")))
    allgather = signalled(multihost_utils, "process_allgather", 1)
    scenario(recipe, "prepare", (1, allgather))
    unknown = fails(pretrained, "begin_from", "no such weights")
    scenario(recipe, "adopt", (0, kept), (1, unknown), pretrained="weights")
    scenario(recipe, "compile", (1, signalled(training, "compile_step", 1)))
    scenario(recipe, "poisoned", (None, poisoned))
    signal_at_3 = signalled(Run, "record", 3)
    scenario(recipe, "full", (0, no_room), (1, signal_at_3), log_every_steps=4)
    scenario(
        *(recipe, "apart", (1, small)),
        max_steps=3,
        max_test_samples=41,
        eval_batch_size=16,
        log_every_steps=2,
        save_every_steps=None,
        save_every_minutes=minutes,
    )
    cropped = {"random_resized_crop": True, "max_steps": 3, "workers": index}
    scenario(recipe, "cropped", **cropped)
    scenario(recipe, "seed", run_dir="four", seed=1)
    scenario(recipe, "four")
    (root / f"{index}.json").write_text(json.dumps(found))
    jax.distributed.shutdown()


if __name__ == "__main__":
    main()

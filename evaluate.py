"""Score a run on all test pictures.

    python evaluate.py runs/hresnet
    python evaluate.py runs/hresnet --checkpoint best --output report.json

Prints the accuracy of each class and of a single batch, and ends with one line:
Acc@1 .. Acc@5 .. loss .. n .. (percent, percent, mean cross-entropy, pictures).
"""

from functools import partial

from resnet_jax.config import EvaluateConfig


def main(cfg: EvaluateConfig) -> None:
    from pathlib import Path

    import jax

    from resnet_jax import augment, checkpoint, data, files, metrics, models, training
    from resnet_jax.run import read_run

    # The run: its configuration says everything that is not a flag here.
    run_dir = Path(cfg.run)
    run = read_run(run_dir)
    batch_size = cfg.batch_size or run.eval_batch_size

    if cfg.output is not None:
        files.check_writable(Path(cfg.output).parent, "folder", "--output")

    # Model, and what it sees.
    num_classes, image_shape = data.describe(run.dataset, image_size=run.image_size)
    model = models.create_model(
        run.model, num_classes=num_classes, stem=run.stem, dtype=run.dtype
    )
    prepare = augment.make_augment(num_classes=num_classes, **run.preprocessing)

    # State: the checkpoint's parameters and statistics.
    init = partial(training.init_variables, model, image_shape)
    template = jax.eval_shape(init, key=training.make_keys(run.seed).init)
    variables, step = checkpoint.load_variables(run_dir, cfg.checkpoint, template)
    state = training.TrainState(step=step, opt_state=(), **variables)

    # Scores, by the functions that training used.
    _, test = data.load_dataset(run.dataset, cfg.data_dir or run.data_dir)
    evaluate = partial(
        training.evaluate,
        jax.jit(partial(training.eval_step, model, prepare)),
        partial(data.eval_batches, batch_size=batch_size),
    )
    sums = evaluate(state, test)
    one_batch = evaluate(state, test.take(slice(run.batch_size)))

    print(f"{run_dir}: {run.model} on {run.dataset}, step {step}")
    print(metrics.class_table(sums, test.class_names))
    print(f"one batch: {metrics.summary_line(one_batch)}")
    print(metrics.summary_line(sums))
    if cfg.output is not None:
        report = {
            "run": cfg.run,
            "step": step,
            **metrics.report(sums, test.class_names),
            "one_batch": metrics.report(one_batch, test.class_names),
        }
        files.write_json(Path(cfg.output), report)


if __name__ == "__main__":
    import tyro

    from resnet_jax.errors import command_line

    with command_line("evaluate.py"):
        main(
            tyro.cli(
                EvaluateConfig,
                description=__doc__,
                config=(tyro.conf.PositionalRequiredArgs,),
            )
        )

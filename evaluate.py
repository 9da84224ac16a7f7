"""Score a run, an exported folder or bare weights on all test pictures.

    python evaluate.py runs/hresnet
    python evaluate.py runs/hresnet --checkpoint best --output report.json
    python evaluate.py runs/hresnet --report           one page to look at
    python evaluate.py runs/hresnet --images a.jpg b.png --saliency
    python evaluate.py --compare runs/hresnet runs/resnet20
    python evaluate.py runs/hresnet --export DIR       for PyTorch, and to load again
    python evaluate.py --weights FILE --model resnet20 --normalize imagenet

Prints the accuracy of each class and of a single batch, and ends with one line:
Acc@1 .. Acc@5 .. loss .. n .. (percent, percent, mean cross-entropy, pictures).
"""

from functools import partial

from resnet_jax.options import EvaluateConfig


def main(options: EvaluateConfig) -> None:
    from pathlib import Path

    from resnet_jax import (
        augment,
        data,
        evaluation,
        export,
        files,
        metrics,
        numerics,
        subject,
    )
    from resnet_jax.comparison import compare
    from resnet_jax.feed import make_feed
    from resnet_jax.parallel import make_mesh, replicate
    from resnet_jax.predictions import predict_files
    from resnet_jax.report import write_report

    if options.compare:
        print(compare(options.compare, Path(options.page)))
        return
    numerics.prepare(options.platform, options.devices)
    for path, option in ((options.output, "--output"), (options.export, "--export")):
        if path is not None:
            files.check_writable(Path(path).parent, "folder", option)

    # The network, its checkpoint, and everything that is not a flag here.
    scored = subject.load(options)
    cfg, state = scored.cfg, scored.state

    if options.images:
        home = Path(options.run or ".") / "saliency"
        predict_files(scored, options.images, home if options.saliency else None)
        return

    # Data.
    _, test = data.load_dataset(cfg.dataset, cfg.data_dir, **cfg.loading)
    subject.check_classes(scored, test)
    prepare = augment.make_augment(
        num_classes=len(test.class_names), **cfg.preprocessing
    )

    # Scores, by the functions that training used.
    mesh = make_mesh(options.devices, options.platform)
    feed = make_feed(mesh, test, **cfg.feeding)
    batch_size = cfg.eval_batch_size
    evaluate = evaluation.make_evaluate(scored.model, prepare, feed, batch_size)
    state = replicate(mesh, state)
    sums = evaluate(state, test)
    one_batch = evaluate(state, test.take(slice(cfg.batch_size)))

    print(scored.title)
    print(metrics.class_table(sums, test.class_names))
    print(f"one batch: {metrics.summary_line(one_batch)}")
    figures = metrics.report(sums, test.class_names)
    if options.tta:
        make = partial(evaluation.make_evaluate, views=evaluation.flips_and_shifts)
        augmented = make(scored.model, prepare, feed, batch_size)(state, test)
        print(f"test-time augmentation: {metrics.summary_line(augmented)}")
        figures["tta"] = metrics.report(augmented, test.class_names)
    if options.output is not None:
        one = metrics.report(one_batch, test.class_names)
        found = {"scored": scored.title, "step": int(state.step), **figures}
        files.write_json(Path(options.output), {**found, "one_batch": one})
    if options.report:
        eval_batches = partial(data.eval_batches, batch_size=batch_size)
        logits = evaluation.predict(
            scored.model, prepare, scored.state.variables, eval_batches, test
        )
        page = write_report(Path(options.run), scored, prepare, test, logits)
        print(f"report: {page}")
    if options.export is not None:
        info = subject.info(scored, test.class_names)
        info["metrics"] = {"step": int(state.step), **figures}
        export.write(Path(options.export), scored.state.variables, info)
    print(metrics.summary_line(sums))


if __name__ == "__main__":
    import tyro

    from resnet_jax.errors import command_line

    with command_line("evaluate.py"):
        main(tyro.cli(EvaluateConfig, description=__doc__))

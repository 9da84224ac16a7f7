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

from resnet_jax.commands.options import EvaluateConfig


def main(options: EvaluateConfig) -> None:
    from pathlib import Path

    from resnet_jax import data, files
    from resnet_jax.data import augment
    from resnet_jax.data.loader import make_feed
    from resnet_jax.devices import platform as numerics
    from resnet_jax.devices.mesh import make_mesh, replicate
    from resnet_jax.report.compare import compare
    from resnet_jax.report.predict import predict_files
    from resnet_jax.report.report import write_report
    from resnet_jax.report.subject import check_classes, info, load
    from resnet_jax.training import evaluation, metrics
    from resnet_jax.training.scoring import score
    from resnet_jax.training.seeds import make_each
    from resnet_jax.weights import export

    if options.compare:
        print(compare(options.compare, Path(options.page)))
        return
    numerics.prepare(options.platform, options.devices)
    for path, option in ((options.output, "--output"), (options.export, "--export")):
        if path is not None:
            files.check_writable(Path(path).parent, "folder", option)

    # The network, its checkpoint, and everything that is not a flag here.
    scored = load(options)
    cfg, state = scored.cfg, scored.state

    if options.images:
        home = Path(options.run or ".") / "saliency"
        predict_files(scored, options.images, home if options.saliency else None)
        return

    # Data.
    _, test = data.load_dataset(cfg.dataset, cfg.data_dir, **cfg.loading)
    check_classes(scored, test)
    prepare = augment.make_augment(
        num_classes=len(test.class_names), **cfg.preprocessing
    )

    # Scores, by the functions that training used.
    mesh = make_mesh(options.devices, options.platform)
    feed = make_feed(mesh, test, **cfg.feeding)
    batching = (feed, cfg.eval_batch_size)
    make = partial(evaluation.make_evaluate, scored.model, prepare, *batching)
    make = partial(make, each=make_each(cfg.num_seeds, mesh))
    state = replicate(mesh, state)
    of_seeds = range(cfg.seed, cfg.seed + cfg.num_seeds)
    found = score(make, state, test, of_seeds)
    one_batch = score(make, state, test.take(slice(cfg.batch_size)), of_seeds)

    print(scored.title)
    print(metrics.class_table(found.best, test.class_names))
    print(f"one batch: {metrics.summary_line(one_batch.sums)}")
    print(*found.lines, sep="\n", end="\n" if found.lines else "")
    figures = found.figures
    if options.tta:
        views = partial(make, views=evaluation.flips_and_shifts)
        augmented = score(views, state, test, of_seeds)
        for line in [*augmented.lines, metrics.summary_line(augmented.sums)]:
            print(f"test-time augmentation: {line}")
        figures["tta"] = augmented.figures
    if options.output is not None:
        what = {"scored": scored.title, "step": int(state.step)}
        what |= {**figures, "one_batch": one_batch.figures}
        files.write_json(Path(options.output), what)
    if options.report:
        print(f"report: {write_report(Path(options.run), scored, prepare, test)}")
    if options.export is not None:
        said = info(scored, test.class_names)
        said["metrics"] = {"step": int(state.step), **figures}
        export.write(Path(options.export), scored.state.variables, said)
    print(metrics.summary_line(found.sums))


if __name__ == "__main__":
    import tyro

    from resnet_jax.commands.command_line import command_line

    with command_line("evaluate.py"):
        main(tyro.cli(EvaluateConfig, description=__doc__))

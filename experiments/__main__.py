"""The tutorial's experiments: python -m experiments NAME [--help]

    python -m experiments gradients      vanishing gradients and their remedies
    python -m experiments skip           deeper plain networks train worse
    python -m experiments batchnorm      the effects of BatchNorm

Each command trains its variants on CIFAR-10, or resumes training if it was stopped, and
writes index.html and the plots to --workdir.
"""

import tyro

from experiments import variants
from experiments.batchnorm import BatchNorm
from experiments.gradients import Gradients
from experiments.skip import Skip
from resnet_jax.commands.command_line import command_line

EXPERIMENTS = {"gradients": Gradients, "skip": Skip, "batchnorm": BatchNorm}


def main(experiment: Gradients | Skip | BatchNorm) -> None:
    """Trains the variants of `experiment` and writes its HTML page."""
    outcomes = variants.run(experiment.variants(), experiment.workdir)
    experiment.write_page(outcomes)
    print(f"page: {experiment.workdir / 'index.html'}")


if __name__ == "__main__":
    with command_line("experiments"):
        main(tyro.extras.subcommand_cli_from_dict(EXPERIMENTS, description=__doc__))

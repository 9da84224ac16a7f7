import sys

import pytest

from resnet_jax.report import origin


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (
            ["python", "evaluate.py", "runs/a", "--report"],
            "python evaluate.py runs/a --report",
        ),
        (
            ["/env/bin/python3.12", "/home/me/evaluate.py", "my run"],
            "python3.12 /home/me/evaluate.py 'my run'",
        ),
        (
            ["/env/bin/python", "/env/bin/resnet-jax", "evaluate", "a b", "--report"],
            "resnet-jax evaluate 'a b' --report",
        ),
        (
            ["python", "-m", "resnet_jax", "evaluate", "$HOME", "it's"],
            """python -m resnet_jax evaluate '$HOME' 'it'"'"'s'""",
        ),
    ],
)
def test_a_command_is_shown_as_it_was_typed(monkeypatch, words, shown):
    monkeypatch.setattr(sys, "orig_argv", words)
    # What the program makes of it for its own messages does not matter.
    monkeypatch.setattr(sys, "argv", ["resnet-jax evaluate", *words[3:]])
    assert origin.card().long == {"command": shown}

import jax
import pytest
from resnet_jax.run.profiling import Trace


@pytest.fixture
def noted(monkeypatch):
    """What the profiler is told, in the place of the profiler."""
    told = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda path: told.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: told.append("stop"))
    return told


def go(trace, noted, steps):
    """{what the profiler was told: the step after which}."""
    found = {}
    for step in steps:
        before = len(noted)
        trace.step(step, None)
        found |= dict.fromkeys(noted[before:], step)
    return found


@pytest.mark.parametrize(
    "together, begin, end",
    [(1, 5, 10), (2, 6, 12), (5, 5, 10), (6, 6, 12), (20, 20, 40)],
)
def test_a_trace_is_of_whole_calls(noted, tmp_path, capsys, together, begin, end):
    trace = Trace(tmp_path, 300)
    found = go(trace, noted, range(300 + together, 500, together))
    trace.close()
    assert found == {"start": 300 + begin, "stop": 300 + end}
    assert noted == ["start", "stop"]
    told = f"profile of steps {300 + begin + 1} to {300 + end} in {tmp_path}"
    assert capsys.readouterr().out.strip() == told


def test_a_trace_that_the_run_does_not_outlast_is_ended(noted, tmp_path):
    trace = Trace(tmp_path, 0)
    assert go(trace, noted, range(1, 5)) == {}
    assert go(trace, noted, range(5, 8)) == {"start": 5}
    trace.close()
    assert noted == ["start", "stop"]

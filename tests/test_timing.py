import time

import jax
import jax.numpy as jnp

from resnet_jax.timing import CompileClock, Stopwatch


def test_nested_compile_events_count_once(monkeypatch):
    clock = CompileClock.__new__(CompileClock)
    clock._spans = []
    now = iter([3.0, 5.0, 9.0, 9.5])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    clock._listen("/jax/core/compile/jaxpr_trace_duration", 1.0)  # 2 to 3
    clock._listen("/jax/core/compile/jaxpr_trace_duration", 4.0)  # 1 to 5, around it
    clock._listen("/jax/core/compile/backend_compile_duration", 2.0)  # 7 to 9
    clock._listen("/jax/something/else", 9.0)
    assert clock.seconds_since(0.0) == 6.0
    assert clock.seconds_since(4.0) == 3.0
    assert clock.seconds_since(9.0) == 0.0


def test_a_stopwatch_tells_compilation_apart():
    watch = Stopwatch()
    # A new function each time, so that it must be compiled.
    jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x).T)(jnp.ones((8, 8))).block_until_ready()
    time.sleep(0.05)
    seconds, compiling = watch.stop()
    assert compiling > 0 and seconds >= 0.05


def test_nothing_compiled_is_no_time():
    watch = Stopwatch()
    assert watch.stop()[1] == 0.0

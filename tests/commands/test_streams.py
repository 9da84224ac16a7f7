import contextlib
import errno
import io
import os
import stat
import subprocess
import sys
from contextlib import redirect_stdout

import pytest

from resnet_jax.commands import command_line
from resnet_jax.commands.streams import Stream
from resnet_jax.errors import ConfigError


@pytest.fixture
def full():
    """A text stream to a full device."""
    file = open("/dev/full", "w", encoding="utf-8")
    yield file
    with contextlib.suppress(OSError):  # drops its buffer
        file.close()


@pytest.fixture
def gone():
    """A text stream to a pipe without a reader."""
    reader, writer = os.pipe()
    os.close(reader)
    file = os.fdopen(writer, "w", encoding="utf-8")
    yield file
    with contextlib.suppress(OSError):
        file.close()


@pytest.mark.parametrize(
    ("kind", "number", "is_lost"),
    [("full", errno.ENOSPC, True), ("gone", errno.EPIPE, False)],
)
def test_a_failure_is_noted_and_what_follows_is_dropped(kind, number, is_lost, request):
    stream = Stream(request.getfixturevalue(kind))
    assert stream.failure is None and not stream.is_lost
    assert stream.write("a") == 1
    assert stream.failure is None  # it stays in a buffer
    stream.flush()
    assert stream.failure.errno == number and stream.is_lost == is_lost
    print("b" * 10**5, file=stream, flush=True)
    assert stream.failure.errno == number


def test_a_failure_in_the_middle_of_a_write_is_noted_too(full):
    stream = Stream(full)
    stream.write("a" * 10**5)
    assert stream.is_lost
    stream.write("a" * 10**5)


def test_a_stream_without_failure_is_what_it_was(tmp_path):
    with open(tmp_path / "a", "w", encoding="ascii") as file:
        stream = Stream(file)
        stream.write("\u00e9\udcff\n")
        stream.flush()
        assert stream.fileno() == file.fileno() and stream.encoding == "ascii"
        assert stream.failure is None and not stream.isatty()
    assert (tmp_path / "a").read_text() == "\\xe9\\xff\n"


@pytest.mark.parametrize(
    ("kind", "is_printed", "error", "code"),
    [
        ("full", True, None, 1),
        ("full", False, None, 0),  # like training, whose results are in files
        ("full", True, ConfigError("why"), 2),
        ("gone", True, None, 0),
    ],
)
def test_a_command_fails_where_its_result_is_lost(
    kind, is_printed, error, code, request, capsys
):
    stream = request.getfixturevalue(kind)
    with redirect_stdout(stream), pytest.raises(SystemExit) as caught:
        with command_line.command_line(
            "evaluate.py", owns_process=False, is_printed=is_printed
        ):
            print("Acc@1")
            if error is not None:
                raise error
    assert caught.value.code == code
    reason = "[Errno 28] No space left on device"
    told = f"evaluate.py: the output cannot be written: {reason}\n"
    assert (told in capsys.readouterr().err) == (kind == "full")


@pytest.mark.parametrize("closed", [(), (0,), (1,), (2,), (1, 2), (0, 1, 2)])
def test_no_file_gets_the_number_of_a_closed_stream(closed, tmp_path):
    program = (
        "import sys\n"
        "from resnet_jax.commands.command_line import command_line\n"
        "from resnet_jax.errors import ConfigError\n"
        "with command_line('train.py'):\n"
        "    with open(sys.argv[1], 'w') as file:\n"
        "        file.write(str(file.fileno()))\n"
        "        print('out')\n"
        "        print('err', file=sys.stderr, flush=True)\n"
        "    raise ConfigError('why')\n"
    )
    written = tmp_path / "number"
    line = '"$@" ' + " ".join(f"{number}>&-" for number in closed)
    done = subprocess.run(
        ["bash", "-c", line, "-", sys.executable, "-c", program, str(written)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert int(written.read_text()) >= 3
    assert done.stdout == ("" if 1 in closed else "out\n")
    assert done.stderr == ("" if 2 in closed else "err\ntrain.py: why\n")


def test_a_stream_without_a_descriptor_may_fail_as_well():
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

    stream = Stream(Full())
    assert stream.write("a") == 1 and stream.is_lost


def test_another_program_keeps_its_descriptor(gone):
    stream = Stream(gone, is_own=False)
    stream.write("a")
    stream.flush()
    assert stream.failure is not None
    assert stat.S_ISFIFO(os.fstat(gone.fileno()).st_mode)

import re

from benchmarks import grouped


def test_both_gradients_are_timed(capsys):
    grouped.main(grouped.Grouped(batch_size=1, side=5, channels=4, groups=2, rounds=2))
    names = []
    for line in capsys.readouterr().out.splitlines():
        name, median, low, high = re.fullmatch(
            r"(.*): (\S+) \((\S+) to (\S+)\)", line
        ).groups()
        assert 0 < float(low) <= float(median) <= float(high)
        names.append(name)
    assert names == ["ours", "XLA's", "ratio"]

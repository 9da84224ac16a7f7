"""Benchmarks, some against PyTorch. Run one with `python -m benchmarks.NAME`."""

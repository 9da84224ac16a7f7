"""Benchmarks, some against PyTorch; run them with `python -m benchmarks.NAME`."""

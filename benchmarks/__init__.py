"""Benchmarks, most of which compare with PyTorch: run `python -m benchmarks.NAME`."""

"""Measurements on the default model: `python -m benchmarks [NAME ...]`; results are kept in `benchmarks/results/`."""

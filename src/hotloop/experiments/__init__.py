"""The jobs behind ``hotloop train`` and the benchmarks."""

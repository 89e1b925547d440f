"""Benchmarks by their official rules: metrics, protocols and the report."""

"""Measurements for docs/benchmarks.md; nothing here is asserted."""

"""Losses as pure functions: tensors in, tensors out; no model, no I/O, no distribution."""

"""Launchers: where the pipeline of a run is executed."""

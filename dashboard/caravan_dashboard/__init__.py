"""Pages over a team's runs: look, compare, annotate, launch. Reads through the library only."""

"""Training in several processes: how they are started, share a step, and keep their state."""

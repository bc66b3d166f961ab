"""Looking after an installation: what runs cost, metrics, logs, traces, backups."""

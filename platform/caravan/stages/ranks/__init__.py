"""One stage in several processes: `launch` starts them, `worker` is what each of them runs."""

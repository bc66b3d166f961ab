"""python -m tests.benchmarks [NAME ...]: run the benchmarks; each prints Markdown."""

import sys

from tests.benchmarks import pocket_seeds, reuse_overhead

BENCHMARKS = {"pocket_seeds": pocket_seeds.main, "reuse_overhead": reuse_overhead.main}

for name in sys.argv[1:] or BENCHMARKS:
    print(f"\n## {name}\n", flush=True)
    BENCHMARKS[name]()

"""All benchmarks, one after the other: `make bench`. Each can be run alone, as `python -m benchmarks.bench_train`."""

import subprocess
import sys
from pathlib import Path

# The proof that the shortcuts of PII find the same: each text once, which takes longer than the figures.
ARGUMENTS = {"bench_score": ["--compare", "2000"]}


def main() -> int:
    names = sorted(path.stem for path in Path(__file__).parent.glob("bench_*.py"))
    failed = []
    for name in names:
        print(f"\n== {name}", flush=True)
        # A process of its own: one benchmark's threads, models and Ray must not slow the next.
        if subprocess.run(command(name), check=False).returncode != 0:
            failed.append(name)
    print(f"\n{len(names) - len(failed)} of {len(names)} benchmarks ran" + (f"; failed: {failed}" if failed else ""))
    return 1 if failed else 0


def command(name: str) -> list[str]:
    return [sys.executable, "-m", f"benchmarks.{name}", *ARGUMENTS.get(name, [])]


if __name__ == "__main__":
    sys.exit(main())

"""Makes tables and charts of benchmark results, and the README's section on performance.

    python -m benchmarks.report gpu.json cpu.json --out report --readme README.md

The results are what `pytest --benchmark-json` wrote; report.md and charts go beside the first, or into --out. --readme
also writes what is between that file's markers, never from dry runs; --check only says whether it is there already.
--save writes the results of one machine into one file, without the times of single calls, to keep.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.reporting.grouping import Chart
from benchmarks.reporting.merging import merged, save
from benchmarks.reporting.readme import rewritten
from benchmarks.reporting.rows import DRY, Results, ResultsError, merge, read
from benchmarks.reporting.tables import report
from mbv3fast.atomic import replacing


def _run(options: argparse.Namespace) -> None:
    if not options.results or (options.check and not options.readme):
        raise ResultsError("--check needs --readme" if options.results else "needs files of results")
    results = merge([read(path) for path in options.results])
    if not results.rows:
        raise ResultsError(f"{options.results[0]}: no rows, only refusals")
    files = {options.readme: rewritten(options.readme, results)} if options.readme else {}
    if options.check and options.readme.read_bytes() != files[options.readme]:
        raise ResultsError(f"{options.readme}: its section on performance is not what these results make")
    if options.check:
        return
    if options.save and results.dry:
        raise ResultsError(f"{results.dry[0]}: {DRY}, so it can't go into {options.save}")
    kept = merged(options.results) if options.save else {}
    folder, charts = options.out or options.results[0].parent, _charts(results)
    folder.mkdir(parents=True, exist_ok=True)
    files |= {folder / chart.name: chart.png for chart in charts}
    files[folder / "report.md"] = report(results, charts).encode()
    for path, content in files.items():
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    if options.save:
        save(kept, options.save)
    print(f"{folder / 'report.md'}: {len(results.rows)} rows, {len(charts)} charts")


def _charts(results: Results) -> list[Chart]:
    """None, and a line that says so, where matplotlib isn't installed."""
    try:
        from benchmarks.reporting.charts import draw
    except ImportError as error:
        print(f"report: draws no charts: {error}", file=sys.stderr)
        return []
    return draw(results)


def main(argv: Sequence[str] | None = None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("benchmarks.report", description=__doc__, formatter_class=raw)
    parser.add_argument("results", type=Path, nargs="*", metavar="RESULTS.json")
    parser.add_argument("--out", type=Path, help="the folder of report.md and its charts")
    parser.add_argument("--readme", type=Path, help="whose section on performance is written")
    parser.add_argument("--save", type=Path, help="a file for all rows, of a machine")
    parser.add_argument("--check", action="store_true", help="write nothing; whether that section is so")
    try:
        _run(parser.parse_args(argv))
    except (ValueError, OSError, OverflowError, RecursionError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Compare finished runs: `python -m personalar.compare DIR... [--out comparison]`.

DIR is a run folder, or a folder with several (of a sweep or a benchmark). It writes a page, a picture and a
table. Nothing is sampled or scored again.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from personalar.core.errors import user_errors


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        prog="python -m personalar.compare",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="DIR", help="a run folder, or a folder of runs"
    )
    parser.add_argument("--out", type=Path, default=Path("comparison"), help="folder for the results")
    given = parser.parse_args(arguments)
    # Imported here, so that --help is fast.
    from personalar.reports.comparison_page import compare_folders
    from personalar.reports.comparison_table import markdown, verdicts

    with user_errors("personalar.compare"):
        records = compare_folders(given.folders, given.out)
        print(markdown(records), *verdicts(records), sep="\n")
        print(f"page: {given.out / 'comparison.html'}")


if __name__ == "__main__":
    main()

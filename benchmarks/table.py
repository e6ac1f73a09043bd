"""Lay out the results of peers.py or npc.py as a Markdown table."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

LATENCIES = ("first_token_p50_ms", "first_token_p99_ms", "inter_token_p50_ms", "inter_token_p99_ms")


def main() -> None:
    """Print the tables of the files named on the command line; later results replace earlier."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, help="what those scripts printed")
    files = parser.parse_args().files
    results = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    for benchmark, table in (("peers", peers_table), ("npc", npc_table)):
        found = [result for result in results if result["benchmark"] == benchmark]
        if found:
            print("\n".join(table(found)))


def peers_table(results: list[dict[str, Any]]) -> list[str]:
    """A row for each width, number of threads and engine, a column for each measure.

    Behind another engine's figure stands how many times better pyllama2c's is.
    """
    measures = list(dict.fromkeys(result["measure"] for result in results))
    cells: dict[tuple[Any, ...], dict[str, str]] = {}
    for result in results:
        row = cells.setdefault((result["width"], result["threads"], result["engine"]), {})
        better = result["ours_is_better_by"]
        ratio = f" ({better:.2f}x)" if better and result["engine"] != "pyllama2c" else ""
        row[result["measure"]] = f"{result['median']:.4g}{ratio}"
    rows = sorted(cells.items(), key=lambda cell: cell[0][:2])
    return layout(
        ["width", "threads", "engine", *measures],
        [[*map(str, key), *(row.get(measure, "") for measure in measures)] for key, row in rows],
    )


def npc_table(results: list[dict[str, Any]]) -> list[str]:
    """A row for each rate and engine."""
    columns = ("tokens_per_s", *LATENCIES, "peak_mib")
    return layout(
        ["arrivals/s", "engine", *(column.replace("_", " ") for column in columns)],
        [
            [f"{r['arrivals_per_s']:g}", r["engine"], *(f"{r[column]:.4g}" for column in columns)]
            for r in results
        ],
    )


def layout(header: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


if __name__ == "__main__":
    main()

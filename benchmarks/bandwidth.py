"""How fast this machine reads memory, and multiplies and adds in registers.

Decoding one text reads every weight once per token, so no engine decodes faster than memory is
read; a batch of texts, or a prompt, is bound by arithmetic. Every other figure stands beside these.

    python benchmarks/bandwidth.py
"""

from __future__ import annotations

import argparse
import statistics

from machine import PEAKS, Memory, cpu_name, peak, report


def main() -> None:
    """Print one JSON line per measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, nargs="+", default=[50, 100, 400])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5, help="of which the median is taken")
    parser.add_argument("--smoke", action="store_true", help="seconds, to see that it works")
    args = parser.parse_args()
    seconds = 0.3
    if args.smoke:
        args.megabytes, args.rounds, seconds = args.megabytes[:1], 1, 0.02

    for megabytes in args.megabytes:
        for pages in ("huge", "small"):
            with Memory(megabytes * 10**6, huge_pages=pages == "huge") as memory:
                for n_threads in args.threads:
                    rates = [memory.read(n_threads, seconds) for _ in range(args.rounds)]
                    report(
                        benchmark="bandwidth",
                        megabytes=megabytes,
                        pages=pages,
                        threads=n_threads,
                        gb_per_s=statistics.median(rates) / 1e9,
                        best_gb_per_s=max(rates) / 1e9,
                        cpu=cpu_name(),
                    )
    for dtype in PEAKS:
        for n_threads in args.threads:
            peaks = [peak(dtype, n_threads, seconds) for _ in range(args.rounds)]
            known = [rate for rate in peaks if rate is not None]
            report(
                benchmark="peak",
                dtype=dtype,
                threads=n_threads,
                gop_per_s=statistics.median(known) / 1e9 if known else None,
                cpu=cpu_name(),
            )


if __name__ == "__main__":
    main()

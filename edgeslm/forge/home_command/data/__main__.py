"""Prints training examples as tab-separated text and answer.

`python -m edgeslm.forge.home_command.data 1000 --seed 7 [--held-out] [--clean]`
"""

from __future__ import annotations

import argparse
import sys

from .sampler import generate


def main(arguments: list[str] | None = None) -> int:
    """Print examples; return the exit code."""
    parser = argparse.ArgumentParser(prog="edgeslm.forge.home_command.data", description=__doc__)
    parser.add_argument("count", type=int, help="how many examples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--held-out", action="store_true", help="only the evaluation split (default: only training)"
    )
    parser.add_argument(
        "--clean", action="store_true", help="templates as they stand: no phrasings, no noise"
    )
    options = parser.parse_args(arguments)
    for example in generate(options.count, options.seed, options.held_out, not options.clean):
        print(f"{example.text}\t{example.answer}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

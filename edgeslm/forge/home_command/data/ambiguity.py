"""Finds texts that were given more than one answer.

`python -m edgeslm.forge.home_command.data.ambiguity 200000` prints the share
and the clashes; a label the text does not decide teaches the model to guess.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable

from .example import Example
from .sampler import Sampler


def find_ambiguous(examples: Iterable[Example]) -> dict[str, set[str]]:
    """Return the texts with more than one answer, each with its answers."""
    answers: defaultdict[str, set[str]] = defaultdict(set)
    for example in examples:
        answers[example.text].add(example.answer)
    return {text: found for text, found in answers.items() if len(found) > 1}


def draw_mixed(count: int, seed: int) -> list[Example]:
    """Return examples of both sources without noise, where chance clashes show best."""
    sampler = Sampler(seed)
    return [sampler.sample() if at % 2 else sampler.sample_phrasing() for at in range(count)]


def main(arguments: list[str] | None = None) -> int:
    """Print the share of ambiguous texts and every clash; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    examples = draw_mixed(options.count, options.seed)
    clashes = find_ambiguous(examples)
    counts = Counter(example.text for example in examples)
    affected = sum(counts[text] for text in clashes)
    print(f"{len(clashes)} of {len(counts)} texts clash; {affected / len(examples):.3%} of the examples")
    for text, answers in sorted(clashes.items()):
        print(text, *sorted(answers), sep="\n    ")
    return 0


if __name__ == "__main__":
    sys.exit(main())

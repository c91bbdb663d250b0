"""Time to the first token of a second turn: taken up, taken up after another conversation came between, and anew.

``python -m benchmarks.runtime_sessions PACKAGE --json``: the same prompts, the same process, the ways in turn; medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence

from edgeslm.cli import wiring
from edgeslm.runtime.conversation import Turn
from edgeslm.runtime.model import LoadedModel
from edgeslm.runtime.prefix_cache import PrefixCache
from edgeslm.schema.message import Options

ANSWER_TOKENS = 16
SECOND = "And what would you do about it?"
TEXT = "The kettle in the kitchen was still warm when the lights in the hall went out for the second time. "


class Talk:
    """Two conversations with one model."""

    def __init__(self, package: str, threads: int, tokens: int) -> None:
        self.model: LoadedModel = wiring.open_model(package, threads=threads)
        limit = min(tokens, self.model.installed.manifest.max_prompt_tokens - 4 * ANSWER_TOKENS)
        self.first = self._prompt(limit)
        self.rounds = 0

    def _prompt(self, tokens: int) -> str:
        """A text of at most so many tokens."""
        words = (TEXT * (tokens // 8 + 1)).split()
        encode = self.model.tokenizer.encode
        return next(
            text
            for text in (" ".join(words[:count]) for count in range(len(words), 0, -4))
            if len(encode(text)) <= tokens
        )

    def say(self, prompt: str, turns: Sequence[Turn] = ()) -> tuple[Turn, dict[str, float]]:
        """A turn, and what its first token took."""
        answer = self.model.answer(prompt, Options(session="s", max_tokens=ANSWER_TOKENS), turns=turns)
        if answer.turn is None:
            raise SystemExit("the model remembers no turns")
        made = answer.generation
        figures = {
            "first_ms": (made.first_token_s or 0.0) * 1e3,
            "cached": made.cached_tokens,
            "tokens": made.prompt_tokens,
        }
        return answer.turn, figures

    def round(self) -> dict[str, dict[str, float]]:
        """Each way once; no conversation begins as another one."""
        self.rounds += 1
        turn, _ = self.say(f"{3 * self.rounds} {self.first}")
        _, alone = self.say(SECOND, [turn])
        turn, _ = self.say(f"{3 * self.rounds + 1} {self.first}")
        self.say(f"{3 * self.rounds + 2} {self.first}")
        _, between = self.say(SECOND, [turn])
        self.model.engine.reset()
        kept = self.model._prefixes
        self.model._prefixes = PrefixCache("none of it")
        _, anew = self.say(SECOND, [turn])
        self.model._prefixes = kept
        return {"alone": alone, "between": between, "anew": anew}


def main() -> None:
    """Measure and tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=400, help="of the first turn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    talk = Talk(given.package, given.threads, given.tokens)
    talk.round()
    rounds = [talk.round() for _ in range(given.rounds)]
    median = {
        way: {name: round(statistics.median(one[way][name] for one in rounds), 2) for name in rounds[0][way]}
        for way in rounds[0]
    }
    found = {
        "package": talk.model.name,
        "ways": median,
        "alone_vs_anew": round(median["alone"]["first_ms"] / median["anew"]["first_ms"], 3),
        "between_vs_anew": round(median["between"]["first_ms"] / median["anew"]["first_ms"], 3),
    }
    print(json.dumps(found) if given.json else json.dumps(found, indent=2))


if __name__ == "__main__":
    main()

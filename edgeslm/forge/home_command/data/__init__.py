"""Training data of `home-command`: spoken-style commands paired with JSON intents.

`Sampler` draws examples, `generate` yields many of one split, `is_held_out`
fixes the split, `fixed_fragments` lists the pieces of answers that recur
verbatim. Sentences come from Home Assistant's intent templates (package
`home-assistant-intents`, Apache-2.0) and from this project's phrasings;
upstream's own test sentences are never read.
"""

from .example import SLOT_ORDER, Example, is_held_out, render_answer
from .fragments import fixed_fragments
from .sampler import Sampler, generate

__all__ = [
    "SLOT_ORDER",
    "Example",
    "Sampler",
    "fixed_fragments",
    "generate",
    "is_held_out",
    "render_answer",
]

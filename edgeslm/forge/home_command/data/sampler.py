"""Draws training and evaluation examples from templates and phrasings.

Two sources: the sentence templates of Home Assistant's intents
(`home_assistant_intents/data/en.json`, Apache-2.0, used as data from its
package; upstream's own test sentences are never read) and this project's
`phrasings.yaml`, which says the same meanings in other ways.

What always holds: one text has one meaning. Where two templates would read
the same words differently, one of them loses:

- a noun behind a name belongs to the name (`the bedside` + `lamp` is the
  device `Bedside Lamp`), also a floor's word `floor`; `scene`, `script`,
  `button` and `list` do not;
- an area in front of a kind of device is an area (`kitchen lights`), and an
  area in front of a name is an area too (`kitchen pendant`); only sensors and
  locks have names that begin with an area;
- `garage door` is the kind of cover, never a door in the garage;
- where only the kind of a device tells two intents apart (`set the X to 40
  percent`, `start the X`, `is the X open`), the name shows its kind;
- a number never stands directly behind a name or area that ends in one;
- a delayed command is the words of the order without politeness.
"""

from __future__ import annotations

import json
import re
from bisect import bisect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from itertools import accumulate
from pathlib import Path
from random import Random

import home_assistant_intents
import yaml
from hassil.expression import Sentence
from hassil.intents import IntentData, Intents

from . import noise
from .example import Example, SlotValue, is_held_out, normalise
from .grammar import CHOSEN, COPIED, END, Compiler, Draft, Emit, strip_marks
from .vocabulary import Vocabulary, title_case

MAX_TEXT_CHARS = 120
MAX_ANSWER_CHARS = 150

PHRASING_SHARE = 0.34
HEAVY_NOISE_SHARE = 0.1
LIGHT_NOISE_SHARE = 0.42

INTENT_WEIGHTS: dict[str, float] = {
    "HassTurnOn": 13, "HassTurnOff": 12, "HassLightSet": 12, "HassGetState": 13, "HassSetPosition": 6,
    "HassClimateSetTemperature": 6.5, "HassClimateGetTemperature": 4, "HassClimateSetFanMode": 3,
    "HassFanSetSpeed": 4, "HassSetVolume": 3.5, "HassSetVolumeRelative": 4.5,
    "HassMediaSearchAndPlay": 5, "HassMediaNext": 1.6, "HassMediaPause": 1.6,
    "HassMediaPlayerMute": 1.1, "HassMediaPlayerUnmute": 1.1, "HassMediaPrevious": 1.6,
    "HassMediaUnpause": 1.4, "HassStartTimer": 8, "HassIncreaseTimer": 2.6, "HassDecreaseTimer": 2.8,
    "HassCancelTimer": 1.8, "HassCancelAllTimers": 0.9, "HassPauseTimer": 1.4, "HassUnpauseTimer": 1.4,
    "HassTimerStatus": 1.8, "HassShoppingListAddItem": 2, "HassShoppingListCompleteItem": 1.5,
    "HassListAddItem": 2, "HassListCompleteItem": 1.6, "HassListRemoveItem": 1.3,
    "HassVacuumCleanArea": 1.8, "HassVacuumReturnToBase": 1.1, "HassVacuumStart": 1.4,
    "HassLawnMowerDock": 1.2, "HassLawnMowerStartMowing": 1.1, "HassBroadcast": 2.5,
    "HassGetWeather": 1.3, "HassGetCurrentDate": 0.5, "HassGetCurrentTime": 0.5, "HassNevermind": 0.5,
    "HassRespond": 0.8,
}  # fmt: skip
"""How often each intent is asked for; templates count for nothing, or timers would be half of it."""

DELAYED_INTENTS = (
    "HassTurnOn", "HassTurnOn", "HassTurnOn", "HassTurnOff", "HassTurnOff", "HassTurnOff",
    "HassLightSet", "HassSetPosition", "HassClimateSetTemperature", "HassSetVolume", "HassFanSetSpeed",
    "HassMediaPause", "HassVacuumCleanArea", "HassVacuumStart", "HassLawnMowerStartMowing",
    "HassMediaPlayerMute", "HassClimateSetFanMode",
)  # fmt: skip
"""What is delayed (`... in five minutes`), as often as named."""

FREE_TEXT_SLOTS = frozenset({"message", "item", "search_query", "conversation_command"})

_KIND_MUST_SHOW = frozenset((
    "HassClimateGetTemperature", "HassClimateSetFanMode", "HassClimateSetTemperature",
    "HassFanSetSpeed", "HassLawnMowerDock", "HassLawnMowerStartMowing", "HassLightSet", "HassMediaNext",
    "HassMediaPause", "HassMediaPrevious", "HassMediaSearchAndPlay", "HassMediaUnpause",
    "HassSetPosition", "HassSetVolume", "HassVacuumCleanArea", "HassVacuumReturnToBase",
    "HassVacuumStart",
))  # fmt: skip
"""Intents whose templates other intents share but for the kind of device."""

_SPOKEN_RULES = {
    "the": "(the|the|the|the|my|our)",
    "in": "(in|in|in|in|in|on|at|of|across|around|throughout)",
    "is": "(is|are|is|are|is|are|is|are|(is|are) (there|the|my|our))",
    "turn": "(turn|turn|turn|switch|switch|change|bring)",
    "any": "(any|any|some|any of <the>|some of <the>)",
}
"""Upstream rules with the same words in the shares people say them."""

_COLLAPSED_FLOOR = re.compile(rf"({END}) floor\b")
_ADVERB_FLOOR = re.compile(
    rf"\b(?:in|on|at|of|across|around|throughout) (?:(?:the|my|our) )?({COPIED}(?:up|down)stairs{END})"
)
_ARTICLE_ADVERB_FLOOR = re.compile(rf"\b(?:the|my|our) ({COPIED}(?:up|down)stairs{END})")
_NAME_NOUN = re.compile(rf"{COPIED}([^{END}]*){END} (light|lights|lighting|lamp|lamps|mower)\b")
_UNIT = re.compile(rf"{CHOSEN}([^{END}]*){END} (hour|minute|second)s?\b( timer)?")
_ENDS_IN_NUMBER = r"(?:\d+|one|two|three|four|five|six|seven|eight|nine)"
_MISREAD = re.compile(
    r"\b(?:the|my|our) (?:the|my|our)\b"
    rf"|\b(?:the|my|our) {COPIED}the "
    rf"|\bthere (?:the )?{COPIED}"
    rf"|\bare [^{COPIED}]*{COPIED}(?:a|one)\b"
    rf"|{_ENDS_IN_NUMBER}{END} {CHOSEN}"
    rf"|[a-z]{END}k"
    rf"|garage{END} {CHOSEN}?(?:door|gate)"
    rf"|{END}(?:(?!k\b|kelvin)[a-z0-9]|{COPIED}|{CHOSEN})"
    r"|\b(?:every|each|single|any|some) (?:the|my|our)\b"
    r"|\b(?:is|are) (?:the|my|our) (?:any|some|all|every|each)\b"
    rf"|\ba an? |\bthe an? "
)
_READS_AS_ORDER = re.compile(rf"(?:all|every|each) .*{CHOSEN}(?:on|off){END}")
_OPEN_END = re.compile(rf"{COPIED}[^{END}]*{END}$")


@dataclass(frozen=True)
class Template:
    """One sentence template, ready to be drawn."""

    intent: str
    emit: Emit
    slots: Mapping[str, SlotValue]
    domains: tuple[str, ...]
    noun: str


@dataclass(frozen=True)
class Drawn:
    """A sentence whose slots are still marked, and what it means."""

    marked: str
    intent: str
    slots: dict[str, SlotValue]


class Corpus:
    """All templates of one source, grouped so that each meaning gets its share."""

    def __init__(self, intents: Intents, compiler: Compiler) -> None:
        self.groups: dict[str, list[list[Template]]] = {}
        for name, intent in intents.intents.items():
            by_meaning: dict[str, list[Template]] = {}
            for block in intent.data:
                meaning = str((block.metadata or {}).get("slot_combination", ""))
                by_meaning.setdefault(meaning, []).extend(_compile_block(name, block, compiler))
            self.groups[name] = list(by_meaning.values())

    def draw(self, intent: str, rng: Random) -> Template:
        """Return a template of `intent`: first the meaning is drawn, then the wording."""
        return rng.choice(rng.choice(self.groups[intent]))


class Sampler:
    """Draws examples; the same seed gives the same examples."""

    def __init__(self, seed: int, intents: tuple[str, ...] | None = None) -> None:
        """Compile the templates; `intents` limits what is drawn (all by default)."""
        self._rng = Random(seed)
        upstream, phrasings = load_sources()
        self.fixed_words = fixed_words(upstream)
        self._vocabulary = Vocabulary(self.fixed_words)
        self._upstream = Corpus(upstream, Compiler(upstream.slot_lists, upstream.expansion_rules))
        self._phrasings = Corpus(
            phrasings,
            Compiler(
                {**upstream.slot_lists, **phrasings.slot_lists},
                {**upstream.expansion_rules, **phrasings.expansion_rules},
            ),
        )
        self._intents = list(intents or self._upstream.groups)
        self._weights = list(accumulate(INTENT_WEIGHTS.get(name, 1.0) for name in self._intents))

    def sample(self) -> Example:
        """Return an example of a template as it stands."""
        return _finish(self._draw(self._upstream, self._pick_intent()))

    def sample_phrasing(self) -> Example:
        """Return an example of one of the project's own phrasings, without noise."""
        return _finish(self._draw(self._phrasings, self._pick_intent()))

    def sample_training(self) -> Example:
        """Return an example of the training mix; never one that is held out."""
        while True:
            example = self.sample_noisy()
            if not is_held_out(example.text):
                return example

    def sample_noisy(self) -> Example:
        """Return an example of the training mix, held out or not."""
        rng = self._rng
        while True:
            corpus = self._phrasings if rng.random() < PHRASING_SHARE else self._upstream
            drawn = self._draw(corpus, self._pick_intent())
            marked = self._roughen(drawn)
            if len(strip_marks(marked)) <= MAX_TEXT_CHARS:
                return _finish(Drawn(marked, drawn.intent, drawn.slots))

    # -- drawing ---------------------------------------------------------------

    def _pick_intent(self) -> str:
        return self._intents[bisect(self._weights, self._rng.random() * self._weights[-1])]

    def _draw(self, corpus: Corpus, intent: str) -> Drawn:
        rng = self._rng
        while True:
            template = corpus.draw(intent, rng)
            domain = rng.choice(template.domains) if template.domains else None
            noun = template.noun
            if noun == "lockable":
                noun = "area" if rng.random() < 0.25 else "any"
            draft = Draft(rng, self._fill, domain, noun, dict(template.slots))
            marked = " ".join(template.emit(draft).split())
            marked = _settle(marked, draft)
            if (
                _MISREAD.search(marked)
                or len(marked) > MAX_TEXT_CHARS + 12
                or not self._is_clear(marked, intent, draft)
            ):
                continue
            drawn = Drawn(marked, intent, draft.slots)
            if len(strip_marks(marked)) <= MAX_TEXT_CHARS and len(_finish(drawn).answer) <= MAX_ANSWER_CHARS:
                return drawn

    def _is_clear(self, marked: str, intent: str, draft: Draft) -> bool:
        """Return whether no other template reads the sentence differently."""
        # "all fans off" is an order, only "are all fans off" a question.
        if intent == "HassGetState" and _READS_AS_ORDER.match(marked):
            return False
        if marked[0] != COPIED:
            return True
        name = str(draft.slots.get("name", ""))
        # A name alone turns the device on; one that ends in a number would read as a level.
        return not (marked.endswith(END) and name and re.search(rf"{_ENDS_IN_NUMBER}$", name.lower()))

    def _fill(self, list_name: str, draft: Draft) -> tuple[str, SlotValue]:
        rng, words = draft.rng, self._vocabulary
        if list_name == "name":
            name = words.name(rng, draft.domain or "light", draft.noun)
            return name, title_case(name)
        if list_name == "area":
            area = words.area(rng)
            return area, title_case(area)
        if list_name == "floor":
            floor = words.floor(rng)
            return floor, title_case(floor)
        if list_name == "zone":
            return words.zone(rng)
        if list_name == "timer_command":
            command = self._delayed_command()
            return command, command
        text = {
            "message": words.message,
            "search_query": words.query,
            "timer_name": words.timer_name,
            "shopping_list_item": words.item,
            "todo_list_item": words.item,
        }[list_name](rng)
        return text, text

    def _delayed_command(self) -> str:
        rng = self._rng
        corpus = self._phrasings if rng.random() < 0.3 else self._upstream
        while True:
            drawn = self._draw(corpus, rng.choice(DELAYED_INTENTS))
            if len(drawn.marked) <= 60 and (noise.starts_with_verb(drawn.marked) or rng.random() < 0.1):
                return strip_marks(drawn.marked)

    # -- noise -----------------------------------------------------------------

    def _roughen(self, drawn: Drawn) -> str:
        rng, marked = self._rng, drawn.marked
        dice = rng.random()
        if dice > HEAVY_NOISE_SHARE + LIGHT_NOISE_SHARE:
            return marked
        free_text = bool(FREE_TEXT_SLOTS & drawn.slots.keys())
        open_end = bool(_OPEN_END.search(marked)) and (
            free_text or drawn.intent.endswith("Timer") or "state" in drawn.slots
        )
        bare_name = marked[0] == COPIED and marked[-1] == END and marked.count(END) == 1
        heavy = dice < HEAVY_NOISE_SHARE
        if heavy and not bare_name:
            if rng.random() < 0.6:
                marked = noise.drop_small_words(marked, rng, free_text=free_text)
            if rng.random() < 0.75:
                marked = noise.misspell(marked, rng, self.fixed_words)
            if rng.random() < 0.25:
                marked = noise.misspell(marked, rng, self.fixed_words)
        if not bare_name and rng.random() < (0.5 if heavy else 0.75):
            marked = noise.add_fillers(marked, rng, open_end=open_end)
        if rng.random() < 0.3:
            marked = noise.punctuate(marked, rng)
        return marked if marked.strip() and not _MISREAD.search(marked) else drawn.marked


def load_sources() -> tuple[Intents, Intents]:
    """Return the upstream templates and the project's phrasings, parsed."""
    upstream_path = Path(home_assistant_intents.__file__).parent / "data" / "en.json"
    upstream_data = json.loads(upstream_path.read_text(encoding="utf-8"))
    upstream_data["expansion_rules"].update(_SPOKEN_RULES)
    upstream = Intents.from_dict(upstream_data)
    text = files(__package__).joinpath("phrasings.yaml").read_text(encoding="utf-8")
    return upstream, Intents.from_dict({"language": "en", **yaml.safe_load(text)})


def fixed_words(intents: Intents) -> frozenset[str]:
    """Return every literal word of the templates, their rules and their lists."""
    text = [
        line for intent in intents.intents.values() for block in intent.data for line in block.sentence_texts
    ]
    text += [rule.text or "" for rule in intents.expansion_rules.values()]
    text += [
        getattr(value.text_in, "text", "") or ""
        for slot_list in intents.slot_lists.values()
        for value in getattr(slot_list, "values", [])
    ]
    bare = re.sub(r"\{[^}]*\}|<[^>]*>", " ", " ".join(text).lower())
    return frozenset(re.findall(r"[a-z']+", re.sub(r"\[s\]|\[es\]", "", bare)))


def generate(
    n: int,
    seed: int,
    held_out: bool = False,
    noisy: bool = True,
    kinds: tuple[str, ...] | None = None,
) -> Iterator[Example]:
    """Yield `n` examples, all held out or none of them.

    With `noisy` they are of the training mix, without it clean templates;
    `kinds` names the intents to draw from (all by default).
    """
    sampler = Sampler(seed, kinds)
    draw = sampler.sample_noisy if noisy else sampler.sample
    made = 0
    while made < n:
        example = draw()
        if is_held_out(example.text) == held_out:
            made += 1
            yield example


def _compile_block(intent: str, block: IntentData, compiler: Compiler) -> list[Template]:
    domain = block.requires_context.get("domain", ())
    domains = (domain,) if isinstance(domain, str) else tuple(domain)
    wanted = (block.metadata or {}).get("noun")
    if domains == ("binary_sensor",):
        opens = any("open_states" in line or "opening" in line for line in block.sentence_texts)
        domains = ("opening_sensor",) if opens else ("occupancy_sensor",)
    domains = tuple("button" if name == "input_button" else name for name in domains)
    return [
        Template(
            intent,
            compiler.compile(sentence.expression),
            block.slots,
            domains,
            str(wanted or _noun_rule(intent, sentence, domains)),
        )
        for sentence in block.sentences
    ]


def _noun_rule(intent: str, sentence: Sentence, domains: tuple[str, ...]) -> str:
    text = sentence.text or ""
    if re.search(r"\{name\} \[?<light>", text):
        return "never"
    if (
        domains == ("lock",)
        and intent in ("HassTurnOn", "HassTurnOff")
        and "{area}" not in text
        and "{floor}" not in text
    ):
        return "lockable"
    if intent in _KIND_MUST_SHOW:
        return "must"
    if intent == "HassGetState" and "state" in text and domains != ("light", "switch", "fan"):
        return "must"
    return "any"


def _settle(marked: str, draft: Draft) -> str:
    """Return `marked` with the wording set right that templates leave loose; may extend the name slot."""
    rng = draft.rng
    if "floor" in draft.slots:
        marked = _COLLAPSED_FLOOR.sub(r"\1", marked)
        if rng.random() < 0.85:
            marked = _ADVERB_FLOOR.sub(r"\1", marked)
            marked = _ARTICLE_ADVERB_FLOOR.sub(r"\1", marked)
    if "name" in draft.slots:
        marked = _NAME_NOUN.sub(lambda found: _join_noun(found, draft), marked)
    if "hour" in marked or "minute" in marked or "second" in marked:
        marked = _UNIT.sub(lambda found: _agree(found, rng), marked)
    return marked


def _join_noun(found: re.Match[str], draft: Draft) -> str:
    name, noun = found.group(1), found.group(2)
    if title_case(name) != draft.slots["name"]:
        return found.group(0)
    if not name.split()[-1].startswith(noun.rstrip("s")):
        name = f"{name} {noun}"
    draft.slots["name"] = title_case(name)
    return f"{COPIED}{name}{END}"


def _agree(found: re.Match[str], rng: Random) -> str:
    number, unit, timer = found.group(1), found.group(2), found.group(3) or ""
    if rng.random() < 0.25:
        return found.group(0)
    plural = "" if timer or number in ("1", "one", "half", "1/2") else "s"
    return f"{CHOSEN}{number}{END} {unit}{plural}{timer}"


def _finish(drawn: Drawn) -> Example:
    return Example(normalise(strip_marks(drawn.marked)), drawn.intent, drawn.slots)

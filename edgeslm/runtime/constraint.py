"""Holding answers to a form: JSON Schema, regular expression, choices or a grammar, by ``llguidance``.

A :class:`Grammar` is a form made ready for one tokenizer; a :class:`Matcher` follows one answer through it and says
which tokens may come next, and which must.

What always holds: whatever is asked for, compiling and following it are bounded in time and memory (`_LIMITS`), and
every refusal is a :class:`ConstraintError`. JSON is compact unless the schema's ``x-guidance`` says otherwise.

The library is loaded with the first answer that has a form, not before: it takes 9 MB and a tenth of a second.
"""

from __future__ import annotations

import codecs
import importlib
import importlib.util
import json
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeslm.errors import ConstraintError, ConstraintMissingError
from edgeslm.runtime.constraint_closing import find_completion
from edgeslm.runtime.constraint_form import NAMES, AnswerForm, first_line, to_grammar
from edgeslm.runtime.constraint_json import JsonPlace
from edgeslm.runtime.constraint_vocabulary import open_vocabulary
from edgeslm.runtime.tokenizer import Tokenizer
from edgeslm.schema.message import ANSWER_FORMS, AnswerFormKind

TokenIds = npt.NDArray[np.int64]

LIBRARY = "llguidance"
INSTALL_HINT = f"Install it with: pip install {LIBRARY} (there are wheels for x86-64 and 64-bit ARM)"

_LIMITS = {
    "max_items_in_row": 2_000,
    "initial_lexer_fuel": 500_000,
    "step_lexer_fuel": 200_000,
    "step_max_items": 50_000,
    "max_lexer_states": 16_384,
    "max_grammar_size": 100_000,
    "verbose_errors": False,
}
"""Of the library's units: lexer states are 1 to 2 kB each, fuel is some 10,000 to 50,000 a millisecond."""

_KEPT_GRAMMARS = 8
"""Grammars that stay compiled: a device is mostly asked for the same few forms."""

_MAX_FORCED_BYTES = 16_384
"""Longest beginning that a form may leave no choice about."""

_LONG_BYTES = 6
"""Shorter forced text is not worth the question whether one token says more."""
_KEPT_STARTS = 256


class Matcher:
    """One answer on its way through a grammar."""

    def __init__(self, matcher: Any, kind: AnswerFormKind, tokens: TokenBytes) -> None:
        self._matcher = matcher
        self._kind = kind
        self._tokens = tokens
        self._place = JsonPlace() if kind == "json_schema" else None

    @property
    def is_complete(self) -> bool:
        """Whether the answer may end here."""
        return bool(self._matcher.is_accepting())

    @property
    def is_stopped(self) -> bool:
        """Whether it has to."""
        return bool(self._matcher.is_stopped())

    def allows(self, token: int) -> bool:
        """Whether `token` may come next."""
        if token >= self._tokens.count or self._matcher.validate_tokens([token]) != 1:
            return False
        place = self._place
        return place is None or not place.in_number or not place.overflows(self._tokens[token])

    def allowed(self) -> TokenIds:
        """Ids of the tokens that may come next, ascending; in JSON none that make a number too large to be read.

        Raises:
            ConstraintError: there are none, or the form is too complex to tell.
        """
        ids = _set_bits(self._matcher)
        if not ids.size or self._matcher.get_error().startswith("NoExtension"):
            raise ConstraintError(f"no answer has the form of {NAMES[self._kind]}", kind=self._kind)
        self.check()
        place = self._place
        if place is not None and place.in_number:
            sane = [token for token in ids.tolist() if not place.overflows(self._tokens[token])]
            # A schema may ask for such a number, and for no other.
            return np.array(sane or ids, np.int64)
        return ids

    def accept(self, token: int) -> None:
        """`token` comes next, and is allowed to.

        Raises:
            ConstraintError: it is not, or the form is too complex to tell.
        """
        if not self._matcher.consume_token(token):
            self.check()
            raise ConstraintError(f"token {token} does not fit {NAMES[self._kind]}", kind=self._kind)
        if self._place is not None:
            self._place.feed(self._tokens[token])

    def forced(self) -> list[int]:
        """The tokens that must come next.

        Empty where a single token of the vocabulary says more than all of them: then one step of the model gets
        further, in the tokens that it was trained on.

        Raises:
            ConstraintError: the form is too complex to tell.
        """
        must: list[int] = self._matcher.compute_ff_tokens()
        self.check()
        said = self._tokens.join(must)
        return [] if any(self.allows(token) for token in self._tokens.beyond(said)) else must

    def check(self) -> None:
        """Raise what went wrong.

        Raises:
            ConstraintError: the form is too complex to be followed any further.
        """
        if self._matcher.is_error():
            raise ConstraintError(
                f"{NAMES[self._kind]} cannot be followed: {first_line(self._matcher.get_error())}",
                kind=self._kind,
                hint="Make it simpler: fewer repetitions of repetitions, fewer alternatives that begin alike",
            )


class TokenBytes:
    """What each token says, as bytes; special tokens say nothing."""

    def __init__(self, library: Any, tokenizer: Any) -> None:
        self._library = library
        self._tokenizer = tokenizer
        self._beyond: dict[bytes, list[int]] = {}
        self.count = int(tokenizer.vocab_size)

    def __getitem__(self, token: int) -> bytes:
        return (
            b"" if self._tokenizer.is_special_token(token) else bytes(self._tokenizer.decode_bytes([token]))
        )

    def join(self, tokens: Sequence[int]) -> bytes:
        """What `tokens` say together."""
        return b"".join(self[token] for token in tokens)

    def beyond(self, start: bytes) -> list[int]:
        """Tokens that say `start` and more; of a short `start`, none are looked for."""
        if len(start) < _LONG_BYTES:
            return []
        if start not in self._beyond:
            if len(self._beyond) >= _KEPT_STARTS:
                self._beyond.clear()
            self._beyond[start] = self._find_beyond(start)
        return self._beyond[start]

    def _find_beyond(self, start: bytes) -> list[int]:
        try:
            text = json.dumps(start.decode())
        except UnicodeDecodeError:
            return []
        # The second alternative keeps `start` from being forced, for then only its own tokens would be told.
        grammar = self._library.LLMatcher.grammar_from_lark(f'start: {text} /(?s:.+)/ | "\\u0000"')
        matcher = self._library.LLMatcher(self._tokenizer, grammar, log_level=0)
        return [token for token in map(int, _set_bits(matcher)) if len(self[token]) > len(start)]


def _set_bits(matcher: Any) -> TokenIds:
    bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
    ids: TokenIds = np.flatnonzero(np.unpackbits(bits, bitorder="little"))
    return ids


class _ByteText:
    """`TokenText` of what a matcher accepts: the bytes that it counted, not what a decoder makes of them."""

    def __init__(self, tokens: TokenBytes) -> None:
        self._tokens = tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that `token` settles; empty while a character is incomplete."""
        return self._decoder.decode(self._tokens[token])

    def finish(self) -> str:
        """Nothing: the start of a character that never came is no text."""
        return ""


class Grammar:
    """A form, ready to be followed."""

    def __init__(self, form: AnswerForm, matcher: Any, tokenizer: Any, tokens: TokenBytes) -> None:
        self.form = form
        self._matcher = matcher
        self._tokenizer = tokenizer
        self._tokens = tokens

    def start(self) -> Matcher:
        """Follow a new answer."""
        return Matcher(self._matcher.deep_copy(), self.form.kind, self._tokens)

    def text(self) -> _ByteText:
        """Turns the tokens of an answer into its text."""
        return _ByteText(self._tokens)

    def prove(self) -> None:
        """Find out what only the first step tells.

        Raises:
            ConstraintError: nothing has the form, or whatever has it never ends.
        """
        forced = self._matcher.deep_copy().compute_ff_bytes()
        if len(forced) > _MAX_FORCED_BYTES:
            raise ConstraintError(
                f"{NAMES[self.form.kind]} allows no answer that ends: it begins with {forced[:40]!r} and goes on so",
                kind=self.form.kind,
                hint="Let a part that contains itself be optional",
            )
        matcher = self.start()
        if not forced and not matcher.is_complete:
            matcher.allowed()

    def complete(self, text: str) -> str | None:
        """What has to be added to `text`, the start of an answer, to give it the form; short, yet no model computes it.

        Returns:
            The addition, empty where `text` has the form already, or ``None`` where none was found in time.
        """
        matcher = self._matcher.deep_copy()
        if text:
            tokens = self._tokenizer.tokenize_bytes(text.encode())
            if matcher.try_consume_tokens(tokens) < len(tokens):
                return None
        return find_completion(matcher, self._tokenizer, text, is_json=self.form.kind == "json_schema")


class GrammarCompiler:
    """Makes forms ready for one tokenizer, and keeps the last few."""

    def __init__(self, tokenizer: Tokenizer, stop_tokens: Sequence[int]) -> None:
        """Remember what it takes; nothing is loaded yet.

        Args:
            stop_tokens: ids that end an answer.
        """
        self._source = tokenizer
        self._stop_tokens = list(stop_tokens)
        self._tokenizer: Any = None
        self._tokens: Any = None
        self._kept: OrderedDict[AnswerForm, Grammar] = OrderedDict()
        self.compile_s = 0.0
        """Seconds that the last form took to compile."""

    def compile(self, form: AnswerForm) -> Grammar:
        """`form`, ready to be followed.

        Raises:
            ConstraintError: it is wrong, too large, nothing has it, or the library does not know a part of it.
            ConstraintMissingError: the library is not installed.
        """
        if form in self._kept:
            self._kept.move_to_end(form)
            return self._kept[form]
        library = _library(form.kind)
        if self._tokenizer is None and not _names_tokens(form):
            # A large vocabulary takes seconds to lay out: what is wrong with a form is told before.
            _make_ready(library, form, library.LLTokenizer("byte"))
        tokenizer = self._open_tokenizer(library, form.kind)
        started = time.perf_counter()
        grammar = _make_ready(library, form, tokenizer, self._tokens)
        self.compile_s = time.perf_counter() - started
        self._kept[form] = grammar
        if len(self._kept) > _KEPT_GRAMMARS:
            self._kept.popitem(last=False)
        return grammar

    def _open_tokenizer(self, library: Any, kind: AnswerFormKind) -> Any:
        if self._tokenizer is None:
            try:
                self._tokenizer = open_vocabulary(library, self._source, self._stop_tokens)
            except Exception as error:  # the library raises what it likes
                raise ConstraintMissingError(
                    f"this model's tokenizer cannot be held to a form: {first_line(str(error))}", kind=kind
                ) from error
            self._tokens = TokenBytes(library, self._tokenizer)
        return self._tokenizer


def _names_tokens(form: AnswerForm) -> bool:
    """Whether a grammar may name special tokens, which only the vocabulary knows: ``<eos>``."""
    return form.kind == "grammar" and "<" in form.text


def _make_ready(library: Any, form: AnswerForm, tokenizer: Any, tokens: TokenBytes | None = None) -> Grammar:
    """`form` for `tokenizer`, found possible."""
    matcher = library.LLMatcher(
        tokenizer, to_grammar(library, form), log_level=0, limits=library.LLParserLimits(**_LIMITS)
    )
    if matcher.is_error():
        raise ConstraintError(
            f"{NAMES[form.kind]} cannot be followed: {first_line(matcher.get_error())}", kind=form.kind
        )
    grammar = Grammar(form, matcher, tokenizer, tokens or TokenBytes(library, tokenizer))
    grammar.prove()
    return grammar


def forms_here() -> tuple[AnswerFormKind, ...]:
    """The forms that answers can be held to on this machine. Nothing is imported."""
    return ANSWER_FORMS if importlib.util.find_spec(LIBRARY) is not None else ()


def _library(kind: AnswerFormKind) -> Any:
    try:
        return importlib.import_module(LIBRARY)
    except ImportError as error:
        raise ConstraintMissingError(
            f"option '{kind}' is not supported on this device: {LIBRARY} is not installed",
            kind=kind,
            hint=INSTALL_HINT,
        ) from error

"""From files to checked rules. What is wrong is told with file, line, key, what was expected, and the nearest name.

All files of a device are read together: a rule may call one of another file, and two files can make a circle.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from pydantic import JsonValue

from edgeslm.agent.rules.brought import BroughtFile
from edgeslm.agent.rules.compiled import (
    CompiledAction,
    CompiledCall,
    CompiledInput,
    CompiledPublish,
    CompiledRule,
    InputKey,
    RuleSet,
    Structure,
)
from edgeslm.agent.rules.conditions import OF_WINDOW, Condition, ExpressionError, Names
from edgeslm.agent.rules.matching import overlap
from edgeslm.agent.rules.safety import (
    Allowed,
    Clamp,
    Schema,
    check_allowed_filter,
    check_input_filter,
    find_circle,
)
from edgeslm.agent.rules.source import Location, Source, parse
from edgeslm.agent.rules.templates import Template
from edgeslm.agent.rules.values import parse_path
from edgeslm.errors import AnswerRefusedError, RuleFileError
from edgeslm.files import read_bounded
from edgeslm.schema.package import MAX_RULE_FILE_BYTES
from edgeslm.schema.rule import (
    MAX_INPUTS,
    MAX_RULES,
    Action,
    Publish,
    Rule,
)
from edgeslm.schema.rule_trace import OverriddenRule

MAX_FILE_BYTES = MAX_RULE_FILE_BYTES
MAX_FILES = 64
SUFFIXES = (".yaml", ".yml")


_OF_CONTEXT = ("payload", "topic", "now", "rule", "stats")


def rule_files(paths: Sequence[Path]) -> list[Path]:
    """The files that `paths` stand for: themselves, and all ``*.yaml`` of those that are directories.

    Raises:
        RuleFileError: one cannot be read, or they are too many.
    """
    found: list[Path] = []
    for path in paths:
        try:
            if path.is_dir():
                found += sorted(
                    entry for entry in path.iterdir() if entry.suffix in SUFFIXES and entry.is_file()
                )
            else:
                found.append(path)
        except OSError as error:
            raise RuleFileError(f"{path}: {error.strerror}", path=str(path)) from error
    unique = list(dict.fromkeys(found))
    if len(unique) > MAX_FILES:
        raise RuleFileError(f"{len(unique)} files of rules; at most {MAX_FILES} are read")
    return unique


def load_rules(paths: Sequence[Path], brought: Sequence[BroughtFile] = ()) -> RuleSet:
    """The rules in the files that `paths` stand for and in those that packages `brought`, checked.

    Raises:
        RuleFileError: something is wrong with one of them, the first that is found.
    """
    return compile_rules([(str(path), _read(path)) for path in rule_files(paths)], brought)


def compile_rules(files: Sequence[tuple[str, bytes]], brought: Sequence[BroughtFile] = ()) -> RuleSet:
    """The rules in files of these names and bytes, checked.

    Args:
        files: the device's own.
        brought: those of packages; a rule there is not used where one before it has its name.

    Raises:
        RuleFileError: as :func:`load_rules`.
    """
    sources: list[tuple[Source, str | None]] = [(parse(name, body), None) for name, body in files]
    sources += [(parse(file.name, file.body), file.origin) for file in brought]
    names = list(dict.fromkeys(rule.name for source, _ in sources for rule in source.file.rules))
    if len(names) > MAX_RULES:
        raise RuleFileError(f"{len(names)} rules; at most {MAX_RULES} run on a device")
    if sum(len(source.file.inputs) for source, _ in sources) > MAX_INPUTS:
        raise RuleFileError(f"more than {MAX_INPUTS} inputs on a device")
    rules: dict[str, CompiledRule] = {}
    inputs: dict[InputKey, CompiledInput] = {}
    where: dict[str, tuple[Source, int]] = {}
    overridden: list[OverriddenRule] = []
    for source, origin in sources:
        compiler = _Compiler(source, names)
        compiled = compiler.inputs()
        used = False
        for index, rule in enumerate(source.file.rules):
            found = compiler.rule(index, rule)
            before = rules.get(rule.name)
            if before is None:
                used = True
                where[rule.name] = (source, index)
                rules[rule.name] = replace(found, origin=origin)
            elif origin is None or origin == before.origin:
                raise source.error(("rules", index, "name"), f"there is a rule '{rule.name}' already")
            else:
                overridden.append(
                    OverriddenRule(name=rule.name, file=source.name, origin=origin, by=before.file)
                )
        if used:
            inputs.update(compiled)
    circle = find_circle(_edges(rules, inputs))
    if circle is not None:
        source, index = where[circle[0]]
        raise source.error(
            ("rules", index, "then"), f"these rules set each other off without end: {' -> '.join(circle)}"
        )
    all_files = [*files, *((f"{file.origin} {file.name}", file.body) for file in brought)]
    digest = hashlib.sha256()
    for name, body in all_files:
        digest.update(name.encode() + b"\0" + hashlib.sha256(body).digest())
    read = tuple(source.name for source, _ in sources)
    return RuleSet(read, inputs, rules, digest.hexdigest(), tuple(overridden))


def _read(path: Path) -> bytes:
    try:
        body = read_bounded(path.resolve(), MAX_FILE_BYTES)
    except OSError as error:
        raise RuleFileError(f"{path}: {error.strerror}", path=str(path)) from error
    if len(body) > MAX_FILE_BYTES:
        raise RuleFileError(f"{path}: more than {MAX_FILE_BYTES} bytes", path=str(path))
    return body


# --- compiling -----------------------------------------------------------------------------------------------


class _Compiler:
    """Compiles what stands in one file."""

    def __init__(self, source: Source, rule_names: Sequence[str]) -> None:
        self._source = source
        self._rule_names = rule_names
        self._inputs = source.file.inputs
        for index, topic_filter in enumerate(source.file.allow):
            with self._told(("allow", index)):
                check_allowed_filter(topic_filter)
        self._allowed = Allowed(source.file.allow)
        for name, spec in source.file.inputs.items():
            with self._told(("inputs", name, "topic")):
                check_input_filter(spec.topic)

    def inputs(self) -> dict[InputKey, CompiledInput]:
        """The file's inputs."""
        return {
            (self._source.name, name): CompiledInput((self._source.name, name), spec, parse_path(spec.path))
            for name, spec in self._inputs.items()
        }

    def rule(self, index: int, rule: Rule) -> CompiledRule:
        """One of its rules.

        Raises:
            RuleFileError: something in it does not fit.
        """
        where: Location = ("rules", index)
        templates: list[Template] = []
        names = self._names("given")
        condition = self._condition((*where, "when"), rule.when, names)
        interlock = tuple(
            self._interlock((*where, "interlock", position), text, rule)
            for position, text in enumerate(rule.interlock)
        )
        prompt = self._template((*where, "prompt"), rule.prompt, templates, ()) if rule.prompt else None
        answer = None
        if rule.answer is not None:
            with self._told((*where, "answer")):
                answer = Schema(rule.answer)
        actions = tuple(
            self._action((*where, "then", position), action, rule, templates)
            for position, action in enumerate(rule.then)
        )
        conditions = [condition, *interlock, *(action.condition for action in actions)]
        shown = {name for one in conditions if one is not None for name in one.reads}
        for template in templates:
            shown |= {name for name in template.reads if name in self._inputs}
            shown |= {name for name, _ in template.figures if name in self._inputs}
        triggers = self._triggers(where, rule, condition, prompt, actions)
        return CompiledRule(
            spec=rule,
            file=self._source.name,
            inputs={name: (self._source.name, name) for name in self._inputs},
            shown=tuple(sorted(shown)),
            triggers=triggers,
            condition=condition,
            interlock=interlock,
            prompt=prompt,
            answer=answer,
            actions=actions,
            allowed=self._allowed,
            templates=tuple(templates),
        )

    def _triggers(
        self,
        where: Location,
        rule: Rule,
        condition: Condition | None,
        prompt: Template | None,
        actions: Sequence[CompiledAction],
    ) -> tuple[InputKey, ...]:
        names: list[str] = []
        if rule.on is not None:
            for position, name in enumerate(rule.on):
                if name not in self._inputs:
                    raise self._unknown((*where, "on", position), "input", name, list(self._inputs))
                names.append(name)
        else:
            reads = set(condition.reads if condition is not None else ())
            first = [prompt] if prompt is not None else []
            if not reads:
                parts = first or [part for action in actions for part in _templates(action)]
                reads = {name for part in parts for name in part.reads if name in self._inputs}
            names = sorted(reads)
        is_called = any(
            action.call is not None and action.call.rule == rule.name
            for other in self._source.file.rules
            for action in other.then
        )
        if not names and rule.every_s is None and not is_called and rule.on is None:
            raise self._source.error(
                where,
                "nothing sets this rule off: give 'on' or 'every', or 'on: []' for one that others call",
            )
        return tuple((self._source.name, name) for name in names)

    def _names(self, *context: str) -> Names:
        windowed = [name for name, spec in self._inputs.items() if spec.window_s is not None]
        return Names(tuple(self._inputs), tuple(windowed), context)

    def _condition(self, where: Location, text: str | None, names: Names) -> Condition | None:
        if text is None:
            return None
        with self._told(where):
            return Condition(text, names)

    def _interlock(self, where: Location, text: str, rule: Rule) -> Condition:
        with self._told(where):
            condition = Condition(text, self._names())
            if not condition.reads:
                raise ExpressionError("an interlock reads at least one input")
            for name in sorted(condition.reads):
                if self._inputs[name].max_age_s is None and rule.max_age_s is None:
                    raise ExpressionError(
                        f"an interlock needs fresh readings: give the input '{name}' or the rule a 'max_age'"
                    )
            return condition

    def _template(self, where: Location, text: str, kept: list[Template], context: Sequence[str]) -> Template:
        names = [*self._inputs, *_OF_CONTEXT, "given", *context]
        with self._told(where):
            template = Template(text, lambda name: name in names, names)
            for name, figure in template.figures:
                if name not in self._inputs or figure not in {*OF_WINDOW, "last", "age"}:
                    raise ExpressionError(f"'stats.{name}.{figure}' is not 'stats.<input>.<mean, age, ...>'")
                if figure in OF_WINDOW and self._inputs[name].window_s is None:
                    raise ExpressionError(f"'stats.{name}.{figure}' needs a 'window' at the input '{name}'")
        kept.append(template)
        return template

    def _action(self, where: Location, action: Action, rule: Rule, kept: list[Template]) -> CompiledAction:
        context = ("answer",) if rule.prompt is not None else ()
        condition = self._condition((*where, "if"), action.if_, self._names("given", *context))
        if action.event is not None:
            return CompiledAction(condition, self._template((*where, "event"), action.event, kept, context))
        if action.call is not None:
            if action.call.rule not in self._rule_names:
                raise self._unknown((*where, "call", "rule"), "rule", action.call.rule, self._rule_names)
            values = {
                name: self._structure((*where, "call", "with", name), value, kept, context)
                for name, value in action.call.values.items()
            }
            return CompiledAction(condition, CompiledCall(action.call.rule, values))
        assert action.publish is not None  # noqa: S101 - the schema says that one of three is there
        publish = self._publish((*where, "publish"), action.publish, kept, context)
        return CompiledAction(condition, publish)

    def _publish(
        self, where: Location, publish: Publish, kept: list[Template], context: Sequence[str]
    ) -> CompiledPublish:
        levels = _levels(publish.topic)
        topic: list[Template | str] = []
        for level in levels:
            if "{" not in level:
                if any(char in level for char in "+#\x00"):
                    raise self._source.error((*where, "topic"), "a topic to publish to has no wildcards")
                topic.append(level)
            else:
                topic.append(self._template((*where, "topic"), level, kept, context))
        pattern = "/".join("+" if isinstance(level, Template) else level for level in topic)
        if not self._allowed.covers_template(pattern):
            nearest = next(iter(get_close_matches(pattern, self._allowed.filters, 1)), None)
            raise self._source.error(
                (*where, "topic"), f"'{publish.topic[:80]}' is not in the file's 'allow'", nearest
            )
        own: list[Template] = []
        payload = self._structure((*where, "payload"), publish.payload, own, context)
        kept += own
        is_made = any(not template.is_constant for template in own)
        if is_made and publish.schema_ is None:
            raise self._source.error(
                where, "a payload with a template needs 'schema', the form that it has to have"
            )
        schema = None
        if publish.schema_ is not None:
            with self._told((*where, "schema")):
                schema = Schema(publish.schema_)
            if not is_made:
                try:
                    schema.check(publish.payload, "the payload")
                except AnswerRefusedError as error:
                    raise self._source.error((*where, "payload"), error.message) from error
        return CompiledPublish(
            topic=tuple(topic),
            payload=payload,
            is_text=isinstance(publish.payload, str),
            schema=schema,
            clamp=Clamp(publish.clamp),
            qos=publish.qos,
            retain=publish.retain,
        )

    def _structure(
        self, where: Location, value: JsonValue, kept: list[Template], context: Sequence[str]
    ) -> Structure:
        if isinstance(value, str):
            if "{{" not in value and "{%" not in value:
                return Structure(value)
            return Structure(self._template(where, value, kept, context))
        if isinstance(value, dict):
            return Structure(
                {key: self._structure((*where, key), item, kept, context) for key, item in value.items()}
            )
        if isinstance(value, list):
            return Structure(
                [self._structure((*where, index), item, kept, context) for index, item in enumerate(value)]
            )
        return Structure(value)

    @contextmanager
    def _told(self, where: Location) -> Iterator[None]:
        try:
            yield
        except ExpressionError as error:
            raise self._source.error(where, str(error), error.nearest) from error

    def _unknown(self, where: Location, what: str, name: str, known: Sequence[str]) -> RuleFileError:
        nearest = next(iter(get_close_matches(name, list(known), 1)), None)
        return self._source.error(where, f"there is no {what} '{name[:64]}'", nearest)


def _levels(topic: str) -> list[str]:
    """The levels of a topic whose templates may hold slashes of their own."""
    levels, depth = [""], 0
    for position, char in enumerate(topic):
        if topic.startswith("{{", position):
            depth += 1
        elif topic.startswith("}}", position):
            depth -= 1
        if char == "/" and depth <= 0:
            levels.append("")
        else:
            levels[-1] += char
    return levels


def _templates(action: CompiledAction) -> list[Template]:
    """The templates of an action that read inputs when it acts."""
    if isinstance(action.what, Template):
        return [action.what]
    if isinstance(action.what, CompiledCall):
        return [part for value in action.what.values.values() for part in _within(value)]
    levels = [level for level in action.what.topic if isinstance(level, Template)]
    return [*levels, *_within(action.what.payload)]


def _within(structure: Structure) -> list[Template]:
    content = structure.content
    if isinstance(content, Template):
        return [content]
    parts: list[Structure] = []
    if isinstance(content, dict):
        parts = [part for part in content.values() if isinstance(part, Structure)]
    elif isinstance(content, list):
        parts = [part for part in content if isinstance(part, Structure)]
    return [template for part in parts for template in _within(part)]


def _edges(rules: dict[str, CompiledRule], inputs: dict[InputKey, CompiledInput]) -> dict[str, list[str]]:
    """Which rules each rule can set off: by a call, or by what it publishes."""
    listening: list[tuple[str, str]] = [
        (inputs[key].spec.topic, rule.name) for rule in rules.values() for key in rule.triggers
    ]
    edges: dict[str, list[str]] = {}
    for rule in rules.values():
        found: list[str] = []
        for action in rule.actions:
            if isinstance(action.what, CompiledCall):
                found.append(action.what.rule)
            elif isinstance(action.what, CompiledPublish):
                pattern = "/".join(
                    "+" if isinstance(level, Template) else level for level in action.what.topic
                )
                found += [name for topic_filter, name in listening if overlap(topic_filter, pattern)]
        edges[rule.name] = list(dict.fromkeys(found))
    return edges

"""What `prompt` and `model run` share: their options, where prompts come from, how answers are shown."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import click
from pydantic import ValidationError

from edgeslm.codec import describe
from edgeslm.errors import UsageError
from edgeslm.schema.message import (
    MAX_BODY_BYTES,
    MAX_INPUTS,
    MAX_PROMPT_CHARS,
    Options,
    Output,
    Overflow,
    Receipt,
    Result,
    Task,
)

_FORM_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)
_MAX_FORM_BYTES = 1_048_576
"""Far above what is taken; the rest of a longer file is not even read."""
_MAX_GROUP_BYTES = MAX_BODY_BYTES - 65_536
"""Of the prompts of one request; the rest is for its options."""
_MAX_TENSOR_BYTES = 16 * 2**20
_OPTION_FLAGS: list[Callable[[Any], Any]] = [
    click.option(
        "--task",
        type=click.Choice(get_args(Task)),
        help="What is to be done. Default: tensor with --tensor, else generate.",
    ),
    click.option(
        "--tensor",
        "tensor_file",
        type=click.Path(path_type=Path, dir_okay=False, exists=True, allow_dash=True),
        help="File with arrays as JSON, by the name of the input, in place of TEXT; a list of such is a batch.",
    ),
    click.option(
        "--messages",
        "messages",
        metavar="FILE|-|JSON",
        help="A conversation in place of TEXT: a list of {role, content}; in a file, on standard input, or as it is.",
    ),
    click.option("--max-tokens", type=int, help="Most tokens of the answer."),
    click.option("--temperature", type=float, help="0 is greedy (default)."),
    click.option("--top-k", type=int, help="Sample among the k likeliest tokens."),
    click.option("--top-p", type=float, help="Sample among the likeliest tokens up to this probability."),
    click.option("--seed", type=int, help="Makes sampling repeatable."),
    click.option("--stop", multiple=True, help="String that ends the answer; may be given several times."),
    click.option(
        "--json-schema",
        "json_schema",
        type=_FORM_FILE,
        help="File with a JSON Schema that the answer follows.",
    ),
    click.option("--regex", help="Regular expression that the whole answer matches."),
    click.option("--choices", help="The answers that there can be, with commas between them."),
    click.option("--grammar", type=_FORM_FILE, help="File with a grammar in Lark's notation."),
    click.option("--session", help="Conversation to go on with, or to begin: any name."),
    click.option(
        "--overflow",
        type=click.Choice(get_args(Overflow)),
        help="What happens to a prompt that is too long, with earlier turns: an error (default), or the oldest go.",
    ),
    click.option("--deadline-ms", type=int, help="Milliseconds after which an answer is worthless."),
]


def request_options(command: Any) -> Any:
    """The flags that say how to answer, and those that say where prompts come from."""
    for option in reversed(_OPTION_FLAGS):
        command = option(command)
    command = click.option("--batch", is_flag=True, help="Each input line is a prompt of its own.")(command)
    command = click.option("--json", "as_json", is_flag=True, help="Print results as JSON, one a line.")(
        command
    )
    return click.argument("text", required=False)(command)


together_option = click.option(
    "--together",
    is_flag=True,
    help=f"With --batch: up to {MAX_INPUTS} lines in one request, with one receipt.",
)


def parse_options(flags: dict[str, Any]) -> Options:
    """`flags` as request options.

    Raises:
        UsageError: a value is out of its range, or a file that one names is of no use.
    """
    given = {name: value for name, value in flags.items() if value is not None and value != ()}
    if "json_schema" in given:
        given["json_schema"] = _read_schema(given["json_schema"])
    if "grammar" in given:
        given["grammar"] = _read_form(given["grammar"])
    if "choices" in given:
        given["choices"] = tuple(filter(None, (choice.strip() for choice in given["choices"].split(","))))
    try:
        return Options.model_validate(given)
    except ValidationError as error:
        raise UsageError(describe(error).replace("_", "-")) from error


def read_asked(
    text: str | None,
    *,
    batch: bool,
    together: bool,
    task: Task | None,
    tensor_file: Path | None,
    messages: str | None = None,
) -> Iterator[dict[str, Any]]:
    """What each request asks: the fields ``task``, and ``prompt``, ``messages``, ``tensor`` or ``inputs``.

    Raises:
        UsageError: as :func:`read_prompts`, or the messages or the file of arrays are of no use.
    """
    if together and not batch:
        raise UsageError("--together goes with --batch")
    if messages is not None:
        if text is not None or batch or tensor_file is not None:
            raise UsageError("--messages takes the place of TEXT, --batch and --tensor")
        yield {"task": task or "generate", "messages": _read_messages(messages)}
        return
    if tensor_file is not None:
        if text is not None or batch:
            raise UsageError("--tensor takes the place of TEXT and --batch")
        found = _read_tensors(tensor_file)
        yield {"task": task or "tensor", "inputs" if isinstance(found, list) else "tensor": found}
        return
    prompts = read_prompts(text, batch=batch)
    for asked in _grouped(prompts) if together else ({"prompt": prompt} for prompt in prompts):
        yield {"task": task or "generate", **asked}


def _grouped(prompts: Iterator[str]) -> Iterator[dict[str, Any]]:
    """As many prompts to a request as it takes."""
    group: list[str] = []
    size = 0
    for prompt in prompts:
        size += len(json.dumps(prompt, ensure_ascii=False).encode())
        if group and (size > _MAX_GROUP_BYTES or len(group) == MAX_INPUTS):
            yield {"inputs": group}
            group, size = [], len(json.dumps(prompt, ensure_ascii=False).encode())
        group.append(prompt)
    if group:
        yield {"inputs": group}


def _read_messages(given: str) -> list[Any]:
    is_inline = given.lstrip().startswith("[")
    name = "--messages" if is_inline else given
    try:
        found = json.loads(given) if is_inline else _read_json(given, MAX_BODY_BYTES)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name} is no JSON: {error}") from error
    if not isinstance(found, list):
        raise UsageError(
            f"{name} holds no list of messages", hint='Write it like [{"role": "user", "content": "hello"}]'
        )
    return found


def _read_json(path: str, max_bytes: int) -> Any:
    try:
        with click.open_file(path, "rb") as file:
            data = file.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise UsageError(f"{path} is longer than {max_bytes} bytes")
        return json.loads(data)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is no JSON: {error}") from error


def _read_tensors(path: Path) -> dict[str, Any] | list[Any]:
    tensors = _read_json(str(path), _MAX_TENSOR_BYTES)
    is_batch = isinstance(tensors, list) and tensors and all(isinstance(item, dict) for item in tensors)
    if not is_batch and not isinstance(tensors, dict):
        raise UsageError(
            f"{path} holds no object of arrays, and no list of such",
            hint='Write it like {"input": [[1, 2, 3]]}',
        )
    found: dict[str, Any] | list[Any] = tensors
    return found


def _read_schema(path: Path) -> dict[str, Any]:
    try:
        schema = json.loads(_read_form(path))
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is no JSON: {error}") from error
    if not isinstance(schema, dict):
        raise UsageError(f"{path} is no JSON Schema: it holds no object")
    return schema


def _read_form(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_FORM_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error


def _closed_words(closed: bool | None) -> str:
    if closed is None:
        return ""
    return ", completed to its form" if closed else ", without its form"


def read_prompts(text: str | None, *, batch: bool) -> Iterator[str]:
    """The prompts to answer: `text`, or standard input where it is ``-`` or (with `batch`) missing.

    With `batch` each non-blank line is one, else the whole input is. Lines are taken as they come, so that a
    pipe is answered while it is still being written.

    Raises:
        UsageError: there is no prompt, or it is no UTF-8, or far too long.
    """
    if text is not None and text != "-":
        yield from _checked(text.splitlines() if batch else [text])
        return
    if text is None and not batch and sys.stdin.isatty():
        raise UsageError("no prompt", hint="Give it as an argument, or '-' to read standard input")
    yield from _checked(_stdin_lines() if batch else ["".join(_stdin_lines())])


def _stdin_lines() -> Iterator[str]:
    for number, line in enumerate(sys.stdin.buffer, start=1):
        try:
            yield line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise UsageError(f"standard input, line {number}: not UTF-8") from error


def _checked(prompts: Any) -> Iterator[str]:
    found = False
    for prompt in prompts:
        stripped = prompt.strip()
        if not stripped:
            continue
        if len(stripped) > MAX_PROMPT_CHARS:
            raise UsageError(f"prompt of {len(stripped)} characters, at most {MAX_PROMPT_CHARS} are taken")
        found = True
        yield stripped
    if not found:
        raise UsageError("the input holds no prompt")


def outcome_text(result: Result | Output) -> str:
    """What a task other than generating gave: a label a line, else JSON."""
    if result.scores is not None:
        return "\n".join(f"{score:.4f}  {label}" for label, score in result.scores.items())
    found = result.model_dump(mode="json", include={"embedding", "tensor"}, exclude_none=True)
    return json.dumps(next(iter(found.values()), ""), separators=(",", ":"))


def receipt_line(receipt: Receipt) -> str:
    """A receipt for a person, on one line."""
    parts = [f"{receipt.prompt_tokens} + {receipt.completion_tokens} tokens"]
    if receipt.cached_tokens:
        parts[0] += f" ({receipt.cached_tokens} known)"
    if receipt.session is not None:
        parts.append(_session_words(receipt))
    if receipt.ttft_ms is not None:
        parts.append(f"first after {receipt.ttft_ms:.1f} ms")
    parts.append(f"all after {receipt.total_ms:.1f} ms")
    if receipt.decode_tps is not None:
        parts.append(f"{receipt.decode_tps:,.0f} tok/s")
    parts.append(f"{format_energy(receipt.energy_j)} ({receipt.meter})")
    return ", ".join(parts)


def _session_words(receipt: Receipt) -> str:
    """What became of a session."""
    turns = f"{receipt.session_turns} earlier turns"
    if receipt.session == "restarted":
        return "session begun anew: the model is another release"
    if receipt.session == "new":
        return "new session"
    return f"{turns}, {receipt.dropped_turns} left out" if receipt.dropped_turns else turns


def format_energy(energy_j: float) -> str:
    """Joules with a fitting prefix."""
    return f"{energy_j * 1e3:.1f} mJ" if energy_j < 1 else f"{energy_j:.2f} J"


class Printer:
    """Shows results as they come: the answer on stdout, figures and errors on stderr."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._shown = 0
        self.failures = 0

    def delta(self, text: str) -> None:
        """A piece of the answer, while it grows."""
        if not self._as_json:
            click.echo(text, nl=False)
            self._shown += len(text)

    def result(self, result: Result) -> None:
        """The whole result; what deltas showed already is not repeated."""
        shown, self._shown = self._shown, 0
        self.failures += result.error is not None
        self.failures += sum(output.error is not None for output in result.outputs or ())
        if self._as_json:
            click.echo(result.model_dump_json(by_alias=True, exclude_none=True))
            return
        if result.error is not None:
            if shown:
                click.echo()
            retry = result.error.retry_after_s
            again = f" (again in {retry:g} s)" if retry is not None else ""
            click.echo(f"edgeslm: {result.error.code}: {result.error.message}{again}", err=True)
            return
        if result.outputs is not None:
            self._outputs(result.outputs)
        else:
            click.echo(outcome_text(result) if result.text is None else result.text[shown:])
        if result.finish_reason not in {"stop", "schema", None}:
            click.echo(f"  [ended early: {result.finish_reason}{_closed_words(result.closed)}]", err=True)
        if result.receipt is not None and sys.stderr.isatty():
            click.echo(click.style(f"  {receipt_line(result.receipt)}", dim=True), err=True)

    def _outputs(self, outputs: tuple[Output, ...]) -> None:
        for number, output in enumerate(outputs, start=1):
            if output.error is not None:
                click.echo(f"edgeslm: input {number}: {output.error.code}: {output.error.message}", err=True)
            else:
                click.echo(outcome_text(output) if output.text is None else output.text)

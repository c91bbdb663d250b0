"""One request, one model, one result with its receipt: what the worker does, and `model run` without an agent."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from edgeslm.agent.batch import answer_inputs
from edgeslm.agent.ports import EnergyMeter, Model
from edgeslm.agent.sessions import Recalled, Sessions
from edgeslm.errors import BadRequestError
from edgeslm.power.port import Cause, EnergyReading
from edgeslm.runtime.conversation import check_messages, spoken
from edgeslm.runtime.generation import Generation, OnText, ShouldStop
from edgeslm.runtime.model import Answer
from edgeslm.runtime.outcome import Outcome
from edgeslm.schema.message import FinishReason, PromptRequest, Receipt, Result

_REMEMBERED: frozenset[FinishReason] = frozenset({"stop", "schema", "length"})
"""Answers that ended for another reason are not what the model would have said, so no turn is made of them."""


def answer_request(
    model: Model,
    meter: EnergyMeter,
    request: PromptRequest,
    device: str,
    *,
    accepted_s: float,
    sessions: Sessions | None = None,
    rule: str | None = None,
    on_text: OnText | None = None,
    should_stop: ShouldStop | None = None,
    paused_s: Callable[[], float] = float,
) -> Result:
    """Answer `request` with `model`.

    Args:
        accepted_s: monotonic time at which the request was accepted.
        sessions: what was said before; a turn that came to its end is added.
        rule: the rule that asks, where one does.
        on_text: gets the answer piece by piece.
        should_stop: asked between tokens.
        paused_s: seconds that `should_stop` has paused for.

    Raises:
        RequestError: the request can't be served.
        InferenceError: the runtime fails.
    """
    if request.inputs is not None:
        return _answer_inputs(model, meter, request, device, accepted_s, rule, should_stop, paused_s)
    check_messages(request, model.installed.manifest)
    said = spoken(request)
    recalled = _recall(model, request, sessions)
    span = meter.begin(Cause("prompt", model=model.name, id=request.id, rule=rule))
    started_s = time.monotonic()
    if request.task != "generate":
        try:
            outcome = model.infer(request, should_stop=should_stop)
        finally:
            energy = span.end()
        return _outcome_result(model, request, device, outcome, energy, started_s - accepted_s, paused_s())
    try:
        answer = model.answer(
            said.prompt,
            request.options,
            on_text=on_text,
            should_stop=should_stop,
            turns=said.turns if recalled is None else recalled.turns,
            system=said.system,
        )
    finally:
        energy = span.end()
    _remember(model, request, sessions, recalled, answer)
    receipt = _receipt(model, answer.generation, energy, started_s - accepted_s, paused_s())
    return Result(
        id=request.id,
        device=device,
        text=answer.generation.text,
        json=answer.data,
        finish_reason=answer.generation.finish_reason,
        closed=answer.generation.closed,
        receipt=receipt.model_copy(update=_history(recalled, answer)),
    )


def _answer_inputs(
    model: Model,
    meter: EnergyMeter,
    request: PromptRequest,
    device: str,
    accepted_s: float,
    rule: str | None,
    should_stop: ShouldStop | None,
    paused_s: Callable[[], float],
) -> Result:
    span = meter.begin(Cause("prompt", model=model.name, id=request.id, rule=rule))
    started_s = time.monotonic()
    try:
        found = answer_inputs(model, request, should_stop=should_stop)
    finally:
        energy = span.end()
    total = found.total
    if request.task != "generate":
        total = replace(total, prefill_s=total.prefill_s - paused_s())
    return Result(
        id=request.id,
        device=device,
        outputs=found.outputs,
        finish_reason=found.finish_reason,
        receipt=_receipt(model, total, energy, started_s - accepted_s, paused_s()),
    )


def _recall(model: Model, request: PromptRequest, sessions: Sessions | None) -> Recalled | None:
    if request.options.session is None:
        return None
    if sessions is None:
        raise BadRequestError("option 'session' is not supported here: nothing is remembered")
    return sessions.recall(request.options.session, model.installed)


def _remember(
    model: Model,
    request: PromptRequest,
    sessions: Sessions | None,
    recalled: Recalled | None,
    answer: Answer,
) -> None:
    if sessions is None or recalled is None or request.options.session is None or answer.turn is None:
        return
    if answer.generation.finish_reason in _REMEMBERED:
        session = request.options.session
        sessions.remember(session, model.installed, answer.turn, dropped=answer.dropped_turns)


def _history(recalled: Recalled | None, answer: Answer) -> dict[str, str | int | None]:
    """What a receipt says of turns and of what was left out."""
    found: dict[str, str | int | None] = {
        "dropped_chars": answer.dropped_chars or None,
        "dropped_turns": answer.dropped_turns or None,
    }
    if recalled is not None:
        found["session"] = recalled.state
        found["session_turns"] = len(recalled.turns) - answer.dropped_turns
    return found


def _outcome_result(
    model: Model,
    request: PromptRequest,
    device: str,
    outcome: Outcome,
    energy: EnergyReading,
    queue_s: float,
    paused_s: float,
) -> Result:
    tokens = outcome.prompt_tokens
    computing_s = outcome.total_s - paused_s
    generation = Generation(
        text="",
        token_ids=(),
        prompt_tokens=tokens,
        cached_tokens=outcome.cached_tokens,
        finish_reason="stop",
        prefill_s=computing_s,
        first_token_s=None,
        decode_s=0.0,
        total_s=outcome.total_s,
    )
    return Result(
        id=request.id,
        device=device,
        label=next(iter(outcome.scores), None) if outcome.scores is not None else None,
        scores=None if outcome.scores is None else dict(outcome.scores),
        embedding=outcome.embedding,
        tensor=None if outcome.tensor is None else dict(outcome.tensor),
        finish_reason="stop",
        receipt=_receipt(model, generation, energy, queue_s, paused_s),
    )


def _receipt(
    model: Model, generation: Generation, energy: EnergyReading, queue_s: float, paused_s: float
) -> Receipt:
    first_s = generation.first_token_s
    queue_ms = queue_s * 1e3
    return Receipt(
        prompt_tokens=generation.prompt_tokens,
        cached_tokens=generation.cached_tokens,
        completion_tokens=len(generation.token_ids),
        queue_ms=round(queue_ms, 3),
        ttft_ms=None if first_s is None else round(queue_ms + first_s * 1e3, 3),
        total_ms=round(queue_ms + generation.total_s * 1e3, 3),
        paused_ms=round(paused_s * 1e3, 3),
        # The last prompt token is computed by the step that gives the first token of the answer.
        prefill_tps=_rate(generation.prompt_tokens - generation.cached_tokens - 1, generation.prefill_s),
        decode_tps=_rate(len(generation.token_ids) - 1, generation.decode_s),
        energy_j=round(energy.energy_j, 6),
        energy_net_j=round(energy.net_j, 6),
        power_w=round(energy.power_w, 4),
        meter=energy.meter,
        model=model.name,
        model_sha256=model.installed.sha256,
        runtime=model.runtime_name,
    )


def _rate(count: int, seconds: float) -> float | None:
    return round(count / seconds, 1) if count > 0 and seconds > 0 else None

"""``bench``: what a served model takes on this board while the device goes on with its work.

Rounds of golden prompts, asked as a guest. Unlike ``edgeslm power bench`` nothing is stopped for it and the board is
not idle, so figures of the same device compare well, and those of different devices as far as they do the same.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal

from edgeslm.agent.operations.arguments import cut_off, read_args
from edgeslm.agent.operations.guest import Asked, Guest, golden_cases, is_right
from edgeslm.agent.operations.ports import Command, Done, Progress, Step
from edgeslm.errors import EdgeslmError, OperationError
from edgeslm.power.integrate import weakest
from edgeslm.power.port import Throttling, Vitals
from edgeslm.schema.message import MeterClass
from edgeslm.schema.operation_results import BenchArgs, Range, ServedBench

_MAX_CASES: Final = 32
_LEAST_LEFT_SHARE: Final = 0.1
"""Of a window of the budget; what is left below that is for users."""


class Bench:
    """``Operation``."""

    op = "bench"
    deadline_s = 3600.0

    def __init__(
        self, guest: Guest, vitals: Callable[[], Vitals], budget_left: Callable[[], float | None]
    ) -> None:
        """Take the parts.

        Args:
            guest: asks the served models.
            vitals: of the board.
            budget_left: share of the fullest window of the budget that is left; ``None`` without a budget.
        """
        self._guest = guest
        self._vitals = vitals
        self._budget_left = budget_left

    def begin(self, command: Command, progress: Progress) -> Step:
        """See ``Operation``."""
        args = read_args(BenchArgs, command)
        self._need_budget("refused")
        try:
            model = self._guest.models.get(args.model)
        except EdgeslmError as error:
            raise OperationError(str(error), reason="refused") from error
        installed = model.installed
        name = installed.manifest.name
        cases = golden_cases(installed, _MAX_CASES)
        if not cases:
            raise OperationError(f"{model.name} holds no golden prompts to ask", reason="refused")
        rounds: list[list[Asked]] = []
        right, throttled = 0, False
        for number in range(args.rounds):
            progress.tell(f"{model.name}, round {number + 1} of {args.rounds}", number / args.rounds)
            self._need_budget("failed")
            asked = []
            for case in cases:
                asked.append(self._guest.ask(name, case, progress))
                right += is_right(case, asked[-1].answer)
                throttled = throttled or _is_slowed(self._vitals().throttling)
            rounds.append(asked)
        if self._guest.models.get(name).installed.sha256 != installed.sha256:
            raise OperationError(f"{name} became another release meanwhile", reason="failed")
        result = ServedBench(
            model=model.name,
            model_sha256=installed.sha256,
            graph=model.graph_file,
            runtime=model.runtime_name,
            threads=model.threads,
            right=right,
            temperature_c=self._vitals().temperature_c,
            throttled=throttled,
            **_figures(rounds),
        )
        progress.tell(f"{model.name}: {result.tokens_per_s.median:.0f} tokens a second", 1.0)
        return Done(result.model_dump(mode="json", exclude_none=True))

    def resume(self, command: Command, memo: Mapping[str, Any] | None, progress: Progress) -> Step:
        """See ``Operation``."""
        cut_off(command)

    def _need_budget(self, reason: Literal["refused", "failed"]) -> None:
        left = self._budget_left()
        if left is not None and left < _LEAST_LEFT_SHARE:
            raise OperationError(
                f"{max(left, 0.0):.0%} of the energy budget is left, which is for users",
                reason=reason,
                hint="Ask again when the window has moved on",
            )


def _figures(rounds: Sequence[Sequence[Asked]]) -> dict[str, Any]:
    """The fields of the result that follow from what was asked."""
    everything = [asked for one in rounds for asked in one]
    first_ms = [
        asked.answer.generation.first_token_s * 1e3
        for asked in everything
        if asked.answer.generation.first_token_s is not None
    ]
    tokens = [sum(len(asked.answer.generation.token_ids) for asked in one) for one in rounds]
    seconds = [sum(asked.seconds for asked in one) for one in rounds]
    joules = [sum(asked.energy.energy_j for asked in one) for one in rounds]
    net_j = [sum(asked.energy.net_j for asked in one) for one in rounds]
    has_tokens = all(tokens)
    by_class: dict[MeterClass, float] = {}
    for asked in everything:
        by_class[asked.energy.meter] = by_class.get(asked.energy.meter, 0.0) + asked.energy.energy_j
    return {
        "rounds": len(rounds),
        "prompts": len(everything),
        "completion_tokens": sum(tokens),
        "disturbed": sum(asked.disturbed for asked in everything),
        "tokens_per_s": _range(
            [count / max(took, 1e-9) for count, took in zip(tokens, seconds, strict=True)]
        ),
        "ttft_ms": _range(first_ms) if first_ms else None,
        "j_per_token": _per_token(joules, tokens) if has_tokens else None,
        "net_j_per_token": _per_token(net_j, tokens) if has_tokens else None,
        "meter": weakest(by_class.items()),
    }


def _per_token(joules: Sequence[float], tokens: Sequence[int]) -> Range:
    return _range([energy / count for energy, count in zip(joules, tokens, strict=True)])


def _range(values: Sequence[float]) -> Range:
    return Range(median=statistics.median(values), least=min(values), most=max(values))


def _is_slowed(flags: Throttling | None) -> bool:
    return flags is not None and (flags.throttled or flags.frequency_capped or flags.soft_temperature_limit)

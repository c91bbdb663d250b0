"""Updates on a device: what it may do (policy), what it reports (``reported``), and the gate's verdict.

Shares are fractions: 0.1 is ten percent. In a comparison of two releases a change above 0 is for the worse, whatever
the unit.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from edgeslm.errors import UpdateCause
from edgeslm.schema.base import FileModel, Identifier, SemanticVersion, Sha256, WireModel
from edgeslm.schema.message import MeterClass

UpdateState = Literal[
    "offered",
    "preflight",
    "fetching",
    "verified",
    "staged",
    "wait_window",
    "trial",
    "gating",
    "committed",
    "rejected",
    "rolling_back",
    "rolled_back",
    "safe_mode",
]
"""A name without a change is idle."""

Criterion = Literal["answers", "ttft", "decode", "energy", "memory"]
CriterionOutcome = Literal["pass", "fail", "inconclusive", "not_measured"]
Outcome = Literal["pass", "fail", "inconclusive"]
TrialMode = Literal["beside", "swap"]
"""Tried in a process beside the one that serves, or in its place where memory holds only one."""

Share = Annotated[float, Field(gt=0, le=10)]
Seconds = Annotated[float, Field(gt=0, le=30 * 86_400)]
Detail = Annotated[str, StringConstraints(max_length=500)]


# --- policy -------------------------------------------------------------------------------------------------


class GatePolicy(FileModel):
    """How much worse a release may be.

    A release that is worse by a limit fails (in at least 95 of 100 cases); one that is no different passes (in at
    least 95 of 100). In between the middle decides: half the limit.

    Attributes:
        speed: limit for seconds to the first token and for seconds a token; ``None`` does not judge it.
        energy: limit for joules a prompt.
        answers: share of golden prompts that may go from right to wrong, itself excluded.
        memory: limit for the highest memory.
        required: what has to be measured; without it the verdict is inconclusive.
        inconclusive: what follows from a verdict that is neither.
        min_rounds: rounds of old, new, new, old that are always run.
        max_rounds: after as many the verdict has to be found.
        block_s: least seconds that one release computes at a time.
        start_below_c: the processor has to be cooler than this when measuring begins,
        cool_s: but this many seconds are the longest that is waited for it.
    """

    speed: Share | None = 0.10
    energy: Share | None = 0.10
    answers: Share | None = 0.03
    memory: Share | None = 0.10
    required: Annotated[tuple[Criterion, ...], Field(max_length=5)] = ("answers", "ttft")
    inconclusive: Literal["roll_back", "commit"] = "roll_back"
    min_rounds: Annotated[int, Field(ge=4, le=100)] = 6
    max_rounds: Annotated[int, Field(ge=4, le=200)] = 40
    block_s: Annotated[float, Field(gt=0, le=60)] = 2.0
    start_below_c: Annotated[float, Field(ge=0, le=120)] = 65.0
    cool_s: Annotated[float, Field(ge=0, le=3600)] = 180.0


class Deadlines(FileModel):
    """Longest that a change may stay in a state, in seconds that the device runs.

    Where the network is needed, only seconds with a network count.
    """

    offered_s: Seconds = 2 * 86_400
    preflight_s: Seconds = 86_400
    fetching_s: Seconds = 7 * 86_400
    verified_s: Seconds = 86_400
    staged_s: Seconds = 86_400
    wait_window_s: Seconds = 14 * 86_400
    trial_s: Seconds = 900
    gating_s: Seconds = 7200
    commit_s: Seconds = 600
    rolling_back_s: Seconds = 600


class UpdatePolicy(FileModel):
    """What an updater may do, beside what an assignment says.

    Attributes:
        probation_s: seconds that a committed release has to serve without a crash before it counts as good.
        short_run_s: a power cut sooner than this after the start counts as one that the release may have caused.
        max_crashes: unexpected ends of the agent's process during probation; at as many the release is rolled back.
        max_reboots: the same for power cuts after short runs.
        max_attempts: tries at a step whose failure is not the release's fault, where time alone does not mend it.
        retry_s: pause before the second try; it doubles from try to try,
        max_retry_s: up to this.
        load_s: longest that loading may take, in a trial and in the agent.
        answer_s: longest that one answer may take in a trial, and a token of it in the agent.
        spare_mb: memory that a trial leaves alone.
    """

    gate: GatePolicy = GatePolicy()
    deadlines: Deadlines = Deadlines()
    probation_s: Seconds = 600
    short_run_s: Seconds = 120
    max_crashes: Annotated[int, Field(ge=1, le=100)] = 3
    max_reboots: Annotated[int, Field(ge=1, le=100)] = 5
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 5
    retry_s: Seconds = 15
    max_retry_s: Seconds = 1800
    load_s: Seconds = 120
    answer_s: Seconds = 60
    spare_mb: Annotated[int, Field(ge=0, le=65_536)] = 32


# --- the verdict --------------------------------------------------------------------------------------------


class CriterionVerdict(WireModel):
    """One thing that was compared.

    Attributes:
        old: of the running release: share of right answers, seconds, joules a prompt, or megabytes.
        new: of the candidate.
        change: share by which the new one is worse.
        low: the change is above this,
        high: and below this, with the confidence that the gate works with.
        limit: at this change the release fails.
        note: why it was not measured or not decided.
    """

    name: Criterion
    outcome: CriterionOutcome
    old: float | None = None
    new: float | None = None
    change: float | None = None
    low: float | None = None
    high: float | None = None
    limit: float | None = None
    note: Detail = ""


class Verdict(WireModel):
    """What the gate found.

    Attributes:
        meter: how energy is known.
        rounds: rounds of old, new, new, old.
        disturbed: blocks that were thrown away because a prompt of a user was answered meanwhile.
        seconds: how long it took.
        temperature_c: of the processor when it began.
        notes: what a reader of the figures has to know.
    """

    outcome: Outcome
    mode: TrialMode
    criteria: Annotated[tuple[CriterionVerdict, ...], Field(strict=False)]
    meter: MeterClass | None = None
    prompts: int = 0
    rounds: int = 0
    disturbed: int = 0
    seconds: float = 0.0
    temperature_c: float | None = None
    notes: Annotated[tuple[Detail, ...], Field(strict=False)] = ()


# --- reported -----------------------------------------------------------------------------------------------


class ReportedFault(WireModel):
    """Why a change did not go on.

    Attributes:
        denied: the device does not try this release again until it is told to.
    """

    cause: UpdateCause
    detail: Detail
    denied: bool = False


class ReportedChange(WireModel):
    """The latest change of one name.

    Attributes:
        number: rises with every change on this device.
        assignment: sequence number of the assignment that asked for it.
        attempt: which try at this state's step it is.
        settled: nothing more will happen.
        waits_for: what it waits for, where that is no failure.
        done_bytes: bytes that have arrived, while fetching.
        swap_s: seconds in which no prompt could begin while the releases were swapped.
        fault: why it failed, or what the last try failed of.
    """

    number: int
    version: SemanticVersion
    sha256: Sha256 | None = None
    state: UpdateState
    assignment: int
    attempt: int = 1
    settled: bool
    waits_for: Detail | None = None
    done_bytes: int | None = None
    total_bytes: int | None = None
    swap_s: float | None = None
    fault: ReportedFault | None = None
    verdict: Verdict | None = None


class ReportedModel(WireModel):
    """One name: what runs, and how it changes.

    Attributes:
        version: what runs; ``None`` while nothing does.
        previous: what it could go back to.
    """

    name: Identifier
    version: SemanticVersion | None = None
    sha256: Sha256 | None = None
    previous: Sha256 | None = None
    change: ReportedChange | None = None


class Reported(WireModel):
    """Body of ``reported``, retained.

    Attributes:
        epoch: changes when the device lost its journal, and with it the count.
        seq: rises with every report of an epoch.
        assignment: sequence number of the assignment that the device follows; 0 if none.
        config: version of the fleet's configuration that is in force; ``None`` if none is.
    """

    v: Literal[1] = 1
    device: Identifier
    epoch: Annotated[str, StringConstraints(max_length=32)]
    seq: int
    assignment: int
    models: Annotated[tuple[ReportedModel, ...], Field(strict=False)]
    config: int | None = None

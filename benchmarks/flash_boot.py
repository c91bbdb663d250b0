"""An emulated board, from power-on to its answer, and through cuts of its power.

``measure`` gives ``boot_to_answer_s``, ``power_cut_points`` and ``power_cut_survived``. A prepared image is started in
QEMU (an emulated Cortex-A72 with two cores, Debian's kernel and system) on a fleet with mosquitto, TLS and enrolment
on this machine. For each moment, from the kernel's start to after the first answer, a card is started for the first
time and killed at that moment; it survives when the next start, with nobody's help, ends in an answer to a prompt.
Roughly measured (``quick``) one card goes through all cuts, and has to answer at the end.

The card forgets (:mod:`edgeslm.sim.card`): beside what the board's system had not written, a random half of what it had
written and not flushed is lost at each cut.

Run by itself: ``python -m benchmarks.flash_boot [--json] [--quick]``.
"""

from __future__ import annotations

import argparse
import json
from contextlib import closing
from typing import Any

from benchmarks import boot_rig
from benchmarks.agent_rig import MeasurementError, say
from benchmarks.boot_rig import MOMENTS, Board, BootRig

_BOARD = "qemu-virt"


def measure(notes: dict[str, str], *, quick: bool = False) -> dict[str, Any]:
    """Take the figures.

    Args:
        notes: takes what there is to say of them, by figure.
        quick: one card for all cuts instead of one for each.
    """
    lacking = boot_rig.missing()
    if lacking is not None:
        notes["boot_to_answer_s"] = notes["power_cut_survived"] = f"not measured; install first: {lacking}"
        return {}
    with boot_rig.boot_rig() as rig:
        found = _first_starts(rig)
        found |= _one_card(rig) if quick else _a_card_each(rig)
    notes["boot_to_answer_s"] = (
        "the first start of a prepared image in QEMU, without KVM, joining included; `again` is the second start"
    )
    notes["power_cut_survived"] = "share of cuts after which the board answered by itself" + (
        "; one card went through all of them" if quick else "; a fresh card for each"
    )
    return found


def _first_starts(rig: BootRig) -> dict[str, Any]:
    say("a first start, and a second one")
    image = rig.prepare(_BOARD, "first")
    with rig.listening("first") as ear, closing(Board(image, ear)) as board:
        board.power_on()
        first_s = board.answers()
        board.power_off()
        board.power_on()
        again_s = board.answers()
    image.unlink()
    return {"boot_to_answer_s": round(first_s, 1), "boot": {"again_s": round(again_s, 1)}}


def _one_card(rig: BootRig) -> dict[str, Any]:
    image = rig.prepare(_BOARD, "worn")
    reached = 0
    with rig.listening("worn") as ear, closing(Board(image, ear)) as board:
        try:
            for moment in MOMENTS:
                board.power_on()
                moment.wait(board)
                board.cut()
                say(f"cut when {moment.name}")
                reached += 1
            board.power_on()
            board.answers()
        except MeasurementError as error:
            say(f"it did not come back: {error}")
            return {
                "power_cut_points": len(MOMENTS),
                "power_cut_survived": max(reached - 1, 0) / len(MOMENTS),
            }
    return {"power_cut_points": len(MOMENTS), "power_cut_survived": 1.0}


def _a_card_each(rig: BootRig) -> dict[str, Any]:
    survived: dict[str, float] = {}
    lost = 0
    for number, moment in enumerate(MOMENTS):
        device = f"cut-{number}"
        image = rig.prepare(_BOARD, device)
        with rig.listening(device) as ear, closing(Board(image, ear, seed=number)) as board:
            try:
                board.power_on()
                moment.wait(board)
                board.cut()
                lost += board.lost_pages
                board.power_on()
                survived[moment.name] = round(board.answers(), 1)
                say(f"cut when {moment.name}: answers {survived[moment.name]:g} s after the next start")
            except MeasurementError as error:
                say(f"cut when {moment.name}: it did not come back: {error}")
        image.unlink()
    return {
        "power_cut_points": len(MOMENTS),
        "power_cut_survived": len(survived) / len(MOMENTS),
        "power_cuts": {"answers_after_s": survived, "lost_pages": lost},
    }


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flash_boot", description=__doc__)
    parser.add_argument("--json", action="store_true", dest="as_json", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="one card for all cuts")
    flags = parser.parse_args()
    notes: dict[str, str] = {}
    found = measure(notes, quick=flags.quick)
    if flags.as_json:
        print(json.dumps({**found, "notes": notes}, indent=2))
        return
    for name, value in found.items():
        print(f"{name:<20} {value}")
    for name, text in notes.items():
        print(f"note: {name}: {text}")


if __name__ == "__main__":
    main()

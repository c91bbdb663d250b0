"""What a simulated fleet costs: processor time and memory of the process that drives it, its fleet's service apart.

python -m benchmarks.sim_fleet 5000 --plain --watch 60
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

from edgeslm.schema.sim_fleet import FleetScenario, SimulatedGroup
from edgeslm.sim.rehearsal import populated, temporary_fleet


def _resident_mb() -> float:
    row = next(line for line in Path("/proc/self/status").read_text("utf-8").splitlines() if "VmRSS" in line)
    return int(row.split()[1]) / 1024


def main() -> None:
    """Measure, and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("devices", type=int)
    parser.add_argument("--plain", action="store_true", help="no TLS")
    parser.add_argument("--join", action="store_true", help="join over the wire instead of being preset")
    parser.add_argument("--interval", type=float, default=60.0, help="seconds between reports; 0 is none")
    parser.add_argument("--watch", type=float, default=60.0, help="seconds to measure")
    asked = parser.parse_args()
    group = SimulatedGroup(name="d", count=asked.devices, models={"home-command": "1.0.0"})
    scenario = FleetScenario(name="cost", title="Cost", interval_s=asked.interval or None, groups=(group,))
    with temporary_fleet("bench", plain=asked.plain) as empty:
        before_mb, began_s = _resident_mb(), time.monotonic()
        with populated(empty, scenario, join=asked.join) as stage:
            made_s = time.monotonic() - began_s
            fleet = stage.devices
            assert fleet.wait_until(lambda now: now.online() == asked.devices, 600)
            online_s, connecting_cpu_s = time.monotonic() - began_s, fleet.look(time.thread_time)
            started_s = time.monotonic()
            time.sleep(asked.watch)
            watched_s = time.monotonic() - started_s
            cpu_s = fleet.look(time.thread_time) - connecting_cpu_s
            print(
                json.dumps(
                    {
                        "devices": asked.devices,
                        "tls": not asked.plain,
                        "made_s": round(made_s, 1),
                        "online_s": round(online_s, 1),
                        "connecting_cpu_s": round(connecting_cpu_s, 1),
                        "cpu_share": round(cpu_s / watched_s, 4),
                        "sent_per_s": round(
                            (fleet.summary().counts["sent"] - 4 * asked.devices) / watched_s, 1
                        ),
                        "memory_mb": round(_resident_mb() - before_mb, 1),
                        "process_mb": round(_resident_mb(), 1),
                        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
                    }
                )
            )


if __name__ == "__main__":
    main()

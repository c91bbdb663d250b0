"""edgeslm: small int8 models on edge boards, over MQTT, within a power budget.

The package is layered; imports point downward only (checked from setup.cfg)::

    cli -> sim -> agent | fleet | forge -> runtime | power | models | link | delivery | trust
        -> topics, codec, files, procfs, children, clock -> schema -> errors

``agent`` runs on the board, ``fleet`` on the operator's machine, ``cli`` is what a person types, ``sim`` holds
simulated surroundings for demo and tests, ``forge`` makes models on a build machine and is never imported by the agent.
"""

__version__ = "0.1.0"

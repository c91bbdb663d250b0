"""Instruments of all kinds that tell what a board draws, each a ``Meter`` of ``power.port``."""

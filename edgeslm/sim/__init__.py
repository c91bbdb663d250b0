"""Simulated surroundings for demo and tests: models, homes. Real implementations of the real ports."""

"""Rollouts: a release on its way through a group of devices, in waves."""

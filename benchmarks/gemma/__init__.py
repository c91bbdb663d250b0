"""Gemma 3 270M for the benchmarks of the runtime: weights from a package index, converted on this machine.

The weights stand under the Gemma terms of use; nothing of them is kept in the project or shipped with it.
"""

"""Figures: speed, memory and losses, each measured in the run that prints it."""

"""The updater: takes a device from one release of a model to the next, and back when the next is no good."""

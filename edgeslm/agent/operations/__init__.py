"""Remote operations: what an operator asks a device to do once (``cmd/<op>/<id>``)."""

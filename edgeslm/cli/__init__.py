"""The command line: parses, calls one library function, renders. `wiring.py` alone chooses concrete classes."""

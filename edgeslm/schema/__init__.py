"""Frozen, bounded pydantic models of everything that crosses a border: files and messages. No I/O here.

Files (``board``, ``package``, ``config``) reject unknown keys, since a misspelt key is a fault of the person who
wrote it. Wire messages (``message``) ignore unknown fields and carry ``v``, so that old and new devices talk.
"""

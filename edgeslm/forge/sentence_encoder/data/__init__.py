"""Sentences of our own by which an encoder is judged."""

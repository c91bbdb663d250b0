"""Flashing: from a stock image to a board that joins its fleet by itself.

The middle is pure: what goes where is a list of :class:`~edgeslm.flash.tree.Entry`, decided from board, profile and
claim. Around it stand adapters: images, disks, and the running machine.
"""

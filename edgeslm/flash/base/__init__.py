"""Base images from the packages of Debian, for people and machines that have no image of a vendor.

No program of the board runs on the way, and nothing needs root: packages are read, not installed, and what their
maintainers' scripts would have set up is set up here. So an image takes seconds, on a machine of any architecture.

Left to others: what makes a board one of a fleet (:mod:`edgeslm.flash.payload`).
"""

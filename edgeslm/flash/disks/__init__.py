"""Cards and disks: which may be written, and writing them so that what is reported good is good."""

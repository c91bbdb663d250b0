"""One file for each step; its name begins with the revision, and revisions sort as text."""

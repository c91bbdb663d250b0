"""Puts edgeslm on a board that runs, and takes it away; standard library only.

An archive of ``edgeslm flash archive`` carries this package beside what it installs, so it has to work with the board's
own Python and nothing else. Imports between its modules are relative: in an archive the package has another name.
"""

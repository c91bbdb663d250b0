"""Model packages that ship with edgeslm, called ``builtin:<name>``. Data only."""

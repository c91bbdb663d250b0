"""Who the board is at its first boot: host name, user, keys, network, in the way that its image understands."""

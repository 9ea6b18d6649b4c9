"""What the wire says, as values: it touches no socket, no loop, no framework and no time."""

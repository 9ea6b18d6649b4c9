"""Who belongs to which channel, and whether their sessions hear it."""

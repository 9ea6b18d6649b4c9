"""The HTTP API of WuKongIM, as far as messages go."""

"""Channels and their members, and the watch over what each member's sessions really hear."""

"""Carries messages to live sessions."""

"""The HTTP API of memberships, findings, audits and repairs."""

"""Packets and codecs without I/O: no Django, no asyncio, no clock."""

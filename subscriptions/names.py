"""What uids and channel ids may look like (protocol §4.4): one rule for every door.

Pure, and imports nothing but Unicode's tables: the codecs use it, too.
"""

from __future__ import annotations

import unicodedata

UID_LENGTH = 100
CHANNEL_ID_LENGTH = 2 * UID_LENGTH + 1
"""A person or agent channel is stored under both uids with an @ between them."""

FORBIDDEN = frozenset("@#&")
PERSON, AGENT = 1, 11


def has_control(text: str) -> bool:
    """Whether a text has control characters (NUL among them) or lone surrogates, which no store
    takes alike."""
    if text.isprintable():
        return False
    return any(unicodedata.category(character) in ("Cc", "Cs") for character in text)


def is_uid(text: str) -> bool:
    """Whether a text can be a uid."""
    return _is_name(text, UID_LENGTH) and not text.isspace()


def is_channel_id(text: str, channel_type: int) -> bool:
    """Whether a text can name a channel: a person's by the peer, or by the pair `a@b`; an agent's
    by the pair `uid@agent`."""
    if channel_type not in (PERSON, AGENT):
        return _is_name(text, CHANNEL_ID_LENGTH)
    if channel_type == AGENT and "@" not in text:
        return False
    return all(is_uid(uid) for uid in text.split("@", 1))


def _is_name(text: str, length: int) -> bool:
    return 0 < len(text) <= length and not FORBIDDEN & set(text) and not has_control(text)

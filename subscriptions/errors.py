"""What can go wrong here, as one tree.

SubscriptionsError
├── InvalidChannel      the caller's fault: the channel id or type cannot be used so
├── InvalidUid          the caller's fault: a uid is blank, too long or has a forbidden character
├── ChannelMissing      the caller's fault: there is no such channel
└── TriggersMissing     ours: a write was not noticed by the database's triggers
"""

from __future__ import annotations


class SubscriptionsError(Exception):
    """Something about subscriptions went wrong."""

    def __init__(self, text: str = "") -> None:
        super().__init__(text or (self.__doc__ or "").split("\n")[0])


class InvalidChannel(SubscriptionsError):
    """This channel id or type cannot be used here."""


class InvalidUid(SubscriptionsError):
    """A uid must be 1 to 100 characters without @ # & and control characters."""


class ChannelMissing(SubscriptionsError):
    """There is no such channel."""


class TriggersMissing(SubscriptionsError):
    """The membership triggers did not fire; run `manage.py migrate`, which installs them."""

"""What the chat keeps, where it keeps anything."""

from __future__ import annotations

from django.db import models


class Message(models.Model):
    """A text that was sent to a room."""

    objects: models.Manager[Message] = models.Manager()
    room = models.CharField(max_length=100)
    text = models.TextField()
    at = models.DateTimeField(auto_now_add=True)


class Membership(models.Model):
    """A room that a user is in."""

    objects: models.Manager[Membership] = models.Manager()
    uid = models.CharField(max_length=100)
    room = models.CharField(max_length=100)

    class Meta:
        indexes = [models.Index(fields=["uid"], name="membership_uid")]

"""Users, devices, channels and who belongs to them."""

from __future__ import annotations

from collections.abc import Mapping

from rest_framework.views import APIView

from messaging.api import lists, operations, serializers, views
from messaging.api.described.shapes import SUCCESS, TEAM
from messaging.protocol.reasons import Reason
from subscriptions.api.description import (
    DONE,
    TEXT,
    TIME,
    WHOLE,
    Answer,
    Operation,
    either,
    many,
    one_of,
    or_null,
    shape,
    uids,
)
from subscriptions.api.serializers import UidsField

FLAGS = {"large": 0, "ban": 0, "disband": 0, "send_ban": 0, "allow_stranger": 0}

USERS: dict[type[APIView], Operation] = {
    operations.DeviceQuit: Operation(
        SUCCESS, body=operations.QuitBody, example={"uid": "alice", "device_flag": -1}
    ),
    views.UserToken: Operation(
        Answer(shape(status=one_of(200, Reason.BAN.value, Reason.DISBAND.value)), {"status": 200}),
        body=serializers.TokenBody,
        example={"uid": "alice", "token": "secret-of-alice", "device_flag": 0, "device_level": 1},
    ),
    views.OnlineStatus: Operation(
        Answer(
            either(DONE, many(shape(uid=TEXT, device_flag=WHOLE, online=one_of(1)))),
            [{"uid": "alice", "device_flag": 0, "online": 1}],
        ),
        body=uids(UidsField()),
        example=["alice", "bob"],
    ),
}

CHANNELS: dict[type[APIView], Operation] = {
    views.ChannelSave: Operation(
        SUCCESS,
        body=serializers.ChannelBody,
        example={**TEAM, **FLAGS, "reset": 0, "subscribers": ["alice", "bob"]},
    ),
    views.ChannelInfo: Operation(
        SUCCESS, body=serializers.InfoBody, example={**TEAM, **FLAGS, "send_ban": 1}
    ),
    views.ChannelDelete: Operation(SUCCESS, body=serializers.DeleteBody, example=TEAM),
    views.SubscriberAdd: Operation(
        SUCCESS,
        body=serializers.AddBody,
        example={**TEAM, "subscribers": ["carol"], "reset": 0, "temp_subscriber": 0},
    ),
    views.SubscriberRemove: Operation(
        SUCCESS, body=serializers.RemoveBody, example={**TEAM, "subscribers": ["carol"]}
    ),
    views.SubscriberRemoveAll: Operation(SUCCESS, body=serializers.RemoveAllBody, example=TEAM),
}

LISTED = {**TEAM, "uids": ["mallory"]}
LISTS: dict[type[APIView], Operation] = {
    lists.BlacklistAdd: Operation(SUCCESS, body=lists.NamesBody, example=LISTED),
    lists.BlacklistRemove: Operation(SUCCESS, body=lists.NamesBody, example=LISTED),
    lists.BlacklistSet: Operation(SUCCESS, body=lists.SetBody, example=LISTED),
    lists.BlacklistRemoveAll: Operation(SUCCESS, body=lists.ListBody, example=TEAM),
    lists.WhitelistAdd: Operation(SUCCESS, body=lists.NamesBody, example=LISTED),
    lists.WhitelistRemove: Operation(SUCCESS, body=lists.NamesBody, example=LISTED),
    lists.WhitelistSet: Operation(SUCCESS, body=lists.SetBody, example=LISTED),
    lists.WhitelistRemoveAll: Operation(SUCCESS, body=lists.ListBody, example=TEAM),
    lists.Whitelist: Operation(
        Answer(
            many(shape(id=WHOLE, uid=TEXT, created_at=or_null(TIME), updated_at=or_null(TIME))),
            [{"id": 1, "uid": "alice", "created_at": None, "updated_at": None}],
        ),
        query=lists.ListQuery,
        given=TEAM,
    ),
    lists.SystemUidsAdd: Operation(
        SUCCESS, body=lists.AccountsBody, example={"uids": ["notifier"]}
    ),
    lists.SystemUidsRemove: Operation(
        SUCCESS, body=lists.AccountsBody, example={"uids": ["notifier"]}
    ),
    lists.SystemUids: Operation(Answer(many(TEXT), ["notifier"])),
}

OPERATIONS: Mapping[type[APIView], Operation] = {**USERS, **CHANNELS, **LISTS}

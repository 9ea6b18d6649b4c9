"""Deny and allow lists, and system accounts (http-api §1.15 to §1.19)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from rest_framework.request import Request
from rest_framework.response import Response

from messaging import accounts
from messaging.api.serializers import KeyBody
from subscriptions import rules
from subscriptions.api.base import ACTOR, ApiView
from subscriptions.api.serializers import Body, SeqField, UidsField, WholeField
from subscriptions.rules import List, Written


class ListBody(KeyBody):
    """A list: of type 1, that of a person, under their uid."""

    channel_type = WholeField(low=1, high=255)


class SetBody(ListBody):
    """The uids that a list has afterwards: none of them, none at all."""

    uids = UidsField(required=False, default=list)


class NamesBody(ListBody):
    """The uids that are put on a list or taken off it."""

    uids = UidsField(needed=True)


class ListQuery(ListBody):
    """GET /channel/whitelist."""

    channel_type = SeqField(longest=3)  # type: ignore[assignment] # the same, as a string


class AccountsBody(Body):
    """POST /user/systemuids_add and _remove; no uids is no error."""

    uids = UidsField(required=False, default=list)


class ListView(ApiView):
    """A change of one list of a channel, whether or not there is the channel."""

    list: ClassVar[List]
    change: ClassVar[Callable[..., Written]]
    takes: ClassVar[type[ListBody]] = NamesBody

    def post(self, request: Request) -> Response:
        """One transaction; asked for twice it is done once."""
        body: dict[str, Any] = self.body(self.takes)
        named = [body["uids"]] if "uids" in body else []
        type(self).change(body["key"], self.list, *named, actor=ACTOR)
        return Response({"status": 200})


class BlacklistAdd(ListView):
    """POST /channel/blacklist_add: uids that may not send to a channel, or to a person."""

    list, change = List.DENY, rules.add


class BlacklistRemove(ListView):
    """POST /channel/blacklist_remove: uids that may send again."""

    list, change = List.DENY, rules.remove


class BlacklistSet(ListView):
    """POST /channel/blacklist_set: just the uids that may not send."""

    list, change, takes = List.DENY, rules.replace, SetBody


class BlacklistRemoveAll(ListView):
    """POST /channel/blacklist_remove_all: nobody is kept from sending."""

    list, change, takes = List.DENY, rules.clear, ListBody


class WhitelistAdd(ListView):
    """POST /channel/whitelist_add: uids that may send where only those listed may."""

    list, change = List.ALLOW, rules.add


class WhitelistRemove(ListView):
    """POST /channel/whitelist_remove: uids that are listed no more."""

    list, change = List.ALLOW, rules.remove


class WhitelistSet(ListView):
    """POST /channel/whitelist_set: just the uids that may send; none of them, all members."""

    list, change, takes = List.ALLOW, rules.replace, SetBody


class WhitelistRemoveAll(ListView):
    """POST /channel/whitelist_remove_all: all members may send."""

    list, change, takes = List.ALLOW, rules.clear, ListBody


class Whitelist(ApiView):
    """GET /channel/whitelist: the allow list of a channel or person."""

    def get(self, request: Request) -> Response:
        """In the order of their adding. The times are not kept: null, as a time that is not set."""
        key = self.query(ListQuery)["key"]
        rows = rules.rules_of(key, List.ALLOW).order_by("pk").values_list("pk", "uid")
        return Response([
            {"id": pk, "uid": uid, "created_at": None, "updated_at": None} for pk, uid in rows
        ])  # fmt: skip


class SystemUidsAdd(ApiView):
    """POST /user/systemuids_add: uids that may send, and be sent to, whatever lists say."""

    def post(self, request: Request) -> Response:
        """Twice is once."""
        accounts.add(self.body(AccountsBody)["uids"], actor=ACTOR)
        return Response({"status": 200})


class SystemUidsRemove(ApiView):
    """POST /user/systemuids_remove: uids that are judged like others again."""

    def post(self, request: Request) -> Response:
        """Twice is once."""
        accounts.remove(self.body(AccountsBody)["uids"], actor=ACTOR)
        return Response({"status": 200})


class SystemUids(ApiView):
    """GET /user/systemuids: all system accounts."""

    def get(self, request: Request) -> Response:
        """A bare array; the server's own uid is not in it."""
        return Response(accounts.uids())

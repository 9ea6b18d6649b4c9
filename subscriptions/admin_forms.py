"""The admin's forms: names are cleaned, and refused, by the services' rules and in their words."""

from __future__ import annotations

from typing import Any

from django import forms
from django.utils.translation import gettext

from subscriptions import services
from subscriptions.bindings import ChannelKey
from subscriptions.errors import InvalidChannel, InvalidUid
from subscriptions.models import Membership
from subscriptions.selectors import find_channel


def clean_key(form: forms.ModelForm) -> ChannelKey | None:
    """The key in a form's two fields, with the id as it is stored; errors go to its id's field."""
    data = form.cleaned_data
    if "channel_id" not in data or "channel_type" not in data:
        return None
    try:
        key = services.canonical(ChannelKey(data["channel_type"], data["channel_id"]))
    except InvalidChannel as error:
        form.add_error("channel_id", str(error))
        return None
    data["channel_id"] = key.channel_id
    return key


def clean_uid(form: forms.ModelForm) -> str:
    """The form's uid. Raises ValidationError in the services' words."""
    uid: str = form.cleaned_data["uid"]
    try:
        services.clean_uids([uid])
    except InvalidUid as error:
        raise forms.ValidationError(str(error)) from error
    return uid


class MembershipForm(forms.ModelForm):
    """Joining a channel, or correcting what a reader keeps."""

    def clean_uid(self) -> str:
        """The uid."""
        return clean_uid(self)

    def clean(self) -> dict[str, Any]:
        """Refuse who is a member already, and a third in a person channel."""
        channel, uid = self.cleaned_data.get("channel"), self.cleaned_data.get("uid")
        if channel and uid:
            try:
                services.check_members(channel.key, [uid])
            except InvalidUid as error:
                self.add_error("uid", str(error))
                return self.cleaned_data
            if Membership.objects.filter(channel=channel, uid=uid).exists():
                text = gettext(
                    "%(uid)s is a member of %(channel)s already. To mend what his live sessions"
                    " hear, choose “Repair group bindings”."
                )
                self.add_error("uid", text % {"uid": uid, "channel": channel})
        return self.cleaned_data


class ChannelForm(forms.ModelForm):
    """A new channel's name, and the flags of any."""

    def clean(self) -> dict[str, Any]:
        """Refuse names that cannot be, and a channel that exists."""
        key = clean_key(self)
        if key and find_channel(key):
            self.add_error("channel_id", gettext("There is a channel %s already.") % str(key))
        return self.cleaned_data


class AccessRuleForm(forms.ModelForm):
    """One entry of a list."""

    def clean_uid(self) -> str:
        """The uid."""
        return clean_uid(self)

    def clean(self) -> dict[str, Any]:
        """Refuse names that cannot be."""
        clean_key(self)
        return self.cleaned_data

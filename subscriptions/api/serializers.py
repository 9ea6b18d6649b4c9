"""What comes in and goes out: strict JSON types, names cleaned as the services clean them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rest_framework import serializers
from rest_framework.settings import api_settings

from subscriptions import audits
from subscriptions.audit import Kind
from subscriptions.bindings import ChannelKey
from subscriptions.conf import conf
from subscriptions.errors import InvalidChannel, InvalidUid
from subscriptions.explain.questions import LARGEST, make_question
from subscriptions.group_bindings import GroupBindingState, State
from subscriptions.models import Finding, Membership
from subscriptions.names import has_control
from subscriptions.services import canonical, clean_uids


class TextField(serializers.Field):
    """A JSON string without control characters, trimmed of nothing."""

    default_error_messages = {
        "invalid": "must be a string.",
        "blank": "must not be empty.",
        "long": "must have at most {longest} characters.",
        "control": "must not contain NUL or other control characters.",
    }

    def __init__(self, *, longest: int = 200, blank: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.longest, self.blank = longest, blank

    def to_internal_value(self, data: Any) -> Any:
        """The text itself."""
        if not isinstance(data, str):
            self.fail("invalid")
        if not data and not self.blank:
            self.fail("blank")
        if len(data) > self.longest:
            self.fail("long", longest=self.longest)
        if has_control(data):
            self.fail("control")
        return data

    def to_representation(self, value: Any) -> Any:
        """Never asked for: these fields only read."""
        return value


class UidField(TextField):
    """One uid (`services.clean_uids`)."""

    def to_internal_value(self, data: Any) -> Any:
        """The uid; an empty one only where `blank` allows it."""
        uid = super().to_internal_value(data)
        if self.blank and not uid:
            return uid
        try:
            cleaned = clean_uids([uid])
        except InvalidUid as error:
            raise serializers.ValidationError(str(error)) from error
        return cleaned[0] if cleaned else self.fail("blank")


class UidsField(TextField):
    """A list of uids without blanks and repeats, in order (`services.clean_uids`)."""

    default_error_messages = {
        "list": "must be a list of strings.",
        "none": "must name at least one uid.",
    }

    def __init__(self, *, needed: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.needed = needed

    def to_internal_value(self, data: Any) -> Any:
        """The cleaned list; empty when all were blank, unless one is `needed`."""
        if not isinstance(data, list) or not all(isinstance(uid, str) for uid in data):
            self.fail("list")
        try:
            uids = clean_uids(data)
        except InvalidUid as error:
            raise serializers.ValidationError(str(error)) from error
        if self.needed and not uids:
            self.fail("none")
        return uids


class WholeField(serializers.Field):
    """A JSON integer within bounds. Not a string, not a float, not a boolean."""

    default_error_messages = {
        "invalid": "must be a whole number.",
        "bounds": "must be from {low} to {high}.",
    }

    def __init__(self, *, low: int = 0, high: int = LARGEST, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.low, self.high = low, high

    def to_internal_value(self, data: Any) -> int:
        """The number itself."""
        if not isinstance(data, int) or isinstance(data, bool):
            self.fail("invalid")
        if not self.low <= data <= self.high:
            self.fail("bounds", low=self.low, high=self.high)
        return data


class SwitchField(serializers.Field):
    """WuKongIM's boolean, 0 or 1; JSON's true and false are as good."""

    default_error_messages = {"invalid": "must be 0 or 1."}

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"required": False, "default": False, **kwargs})

    def to_internal_value(self, data: Any) -> bool:
        """Whether it is 1 or true."""
        if not isinstance(data, int) or data not in (0, 1):
            self.fail("invalid")
        return bool(data)


class Body(serializers.Serializer):
    """A JSON object. Unknown fields are ignored, and null is as good as nothing (http-api §0)."""

    default_error_messages = {"invalid": "must be a JSON object, not {datatype}."}

    def to_internal_value(self, data: Any) -> Any:
        """The known fields, cleaned."""
        if isinstance(data, Mapping):
            data = {name: value for name, value in data.items() if value is not None}
        return super().to_internal_value(data)


class StrictBody(Body):
    """Of our own resources: unknown fields are errors, since a misspelt filter finds too much."""

    def to_internal_value(self, data: Any) -> Any:
        """The fields, cleaned. Refuses names that are not fields."""
        unknown = sorted(set(data) - set(self.fields))
        if unknown:
            known = ", ".join(self.fields)
            text = f"There is no {', '.join(map(repr, unknown))[:200]} here; there are: {known}."
            raise serializers.ValidationError({api_settings.NON_FIELD_ERRORS_KEY: [text]})
        return super().to_internal_value(data)


class ChannelKeyField(TextField):
    """`TYPE:ID`, for example `2:team`. The two uids of a person channel come in any order."""

    def to_internal_value(self, data: Any) -> Any:
        """The ChannelKey, with the id as it is stored."""
        text = super().to_internal_value(data)
        try:
            return canonical(ChannelKey.parse(text))
        except (InvalidChannel, ValueError) as error:
            raise serializers.ValidationError(f"{error}") from error


class LimitField(TextField):
    """Rows of a page, as a query string has them. The paginator knows the most."""

    default_error_messages = {"limit": "must be a whole number from 1."}

    def to_internal_value(self, data: Any) -> int:
        """The number."""
        text = super().to_internal_value(data)
        if not (text.isascii() and text.isdecimal() and int(text)):
            self.fail("limit")
        return int(text)


class Query(StrictBody):
    """The query string of a list. `limit` and `cursor` are for the paginator."""

    limit = LimitField(required=False)
    cursor = TextField(required=False, longest=1_000)


class MembershipQuery(Query):
    """Filters of GET memberships."""

    channel = ChannelKeyField(required=False, longest=210)
    uid = UidField(required=False)
    group_binding = serializers.ChoiceField(choices=State.values, required=False)


class FindingQuery(Query):
    """Filters of GET findings."""

    open = serializers.ChoiceField(choices=["0", "1"], required=False)
    kind = serializers.ChoiceField(choices=list(Kind), required=False)
    channel = ChannelKeyField(required=False, longest=210)
    uid = UidField(required=False)


class SeqField(TextField):
    """A message's seq, as a query string has it."""

    default_error_messages = {"seq": "must be a whole number from 0."}

    def to_internal_value(self, data: Any) -> int:
        """The number."""
        text = super().to_internal_value(data)
        if not (text.isascii() and text.isdecimal() and int(text) <= LARGEST):
            self.fail("seq")
        return int(text)


class ExplanationQuery(StrictBody):
    """The question of GET explanations: who, where, and which message."""

    uid = UidField()
    channel = ChannelKeyField(longest=210)
    seq = SeqField(required=False, longest=19)
    sender = UidField(required=False)
    client_msg_no = TextField(required=False, longest=100)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """The question. Refuses one that names no message, or two."""
        key = attrs.pop("channel")
        try:
            return {"question": make_question(attrs.pop("uid"), key, **attrs)}
        except ValueError as error:
            raise serializers.ValidationError(str(error)) from error


class MembershipSerializer(serializers.ModelSerializer):
    """A membership with the state of its group binding, from `context["states"]` by pk."""

    channel = serializers.CharField()
    group_binding = serializers.SerializerMethodField()

    class Meta:
        model = Membership
        fields = [
            "id", "channel", "uid", "joined_version", "joined_seq", "joined_at", "read_seq",
            "hidden_seq", "group_binding",
        ]  # fmt: skip

    def get_group_binding(self, membership: Membership) -> dict[str, Any]:
        """State, live sessions, and when their nodes last checked all (null: never)."""
        state: GroupBindingState = self.context["states"][membership.pk]
        checked = state.checked_at
        return {
            "state": state.state.value,
            "sessions": state.sessions,
            "checked_at": checked and serializers.DateTimeField().to_representation(checked),
        }


class FindingSerializer(serializers.ModelSerializer):
    """A finding, with its channel as TYPE:ID."""

    channel = serializers.SerializerMethodField()
    session = serializers.CharField(source="session_id")
    node = serializers.IntegerField(source="node_id")

    class Meta:
        model = Finding
        fields = [
            "id", "kind", "reason", "channel", "uid", "session", "node", "first_seen", "last_seen",
            "seen", "memberships", "from_seq", "to_seq", "detail", "healed_at", "healed_by",
        ]  # fmt: skip

    def get_channel(self, finding: Finding) -> str | None:
        """TYPE:ID, or null for a finding about no channel."""
        return str(finding.channel.key) if finding.channel else None


class ScopeSerializer(StrictBody):
    """Where to look: a channel, a uid, or one uid in one channel."""

    channel = ChannelKeyField(required=False, longest=210)
    uid = UidField(required=False)

    def validate(self, attrs: dict[str, Any]) -> dict[str, str]:
        """The scope as audits take it. Refuses one that names nothing: it would mean everything."""
        if not attrs:
            raise serializers.ValidationError(
                "A scope names a channel, a uid or both. Leave `scope` out to mean everything."
            )
        return {name: str(value) for name, value in attrs.items()}


class ScopesField(serializers.Field):
    """One scope, or a list of them. An empty list may be a filter that matched nobody: it is
    refused, since no scope means everything."""

    def to_internal_value(self, data: Any) -> list[dict[str, str]]:
        """The scopes, cleaned."""
        scopes = data if isinstance(data, list) else [data]
        if not scopes:
            raise serializers.ValidationError("must not be empty; leave it out to mean everything.")
        most = conf().audit_scopes
        if len(scopes) > most:
            raise serializers.ValidationError(f"An audit takes at most {most} scopes.")
        if not all(isinstance(scope, Mapping) for scope in scopes):
            raise serializers.ValidationError(
                'must be like {"channel": "2:team", "uid": "alice"}, or a list of such objects.'
            )
        serializer = ScopeSerializer(data=scopes, many=True)
        serializer.is_valid(raise_exception=True)
        return [dict(scope) for scope in serializer.validated_data]


class KindsField(serializers.Field):
    """Kinds of findings; an empty list means all."""

    def to_internal_value(self, data: Any) -> list[str]:
        """The kinds as they are."""
        if not isinstance(data, list) or not all(isinstance(kind, str) for kind in data):
            raise serializers.ValidationError("must be a list of strings.")
        try:
            return audits.clean_kinds(data)
        except ValueError as error:
            raise serializers.ValidationError(str(error)) from error


class AuditRequestSerializer(StrictBody):
    """What to check: where, and for which kinds of findings."""

    scope = ScopesField(required=False, default=list)
    kinds = KindsField(required=False, default=list)


def audit_outcome(audit: Any) -> dict[str, Any]:
    """An audit and the answers to it so far, as JSON."""
    outcome = asdict(audits.outcome(audit))
    return {
        "id": str(audit.pk),
        "repair": audit.repair,
        "scope": audit.scopes,
        "kinds": audit.kinds,
        "actor": audit.actor,
        "requested_at": audit.requested_at,
        "finished_at": audit.finished_at,
        **outcome,
    }

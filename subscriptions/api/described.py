"""What the views below `/subscriptions/` take and answer, for the OpenAPI description."""

from __future__ import annotations

from collections.abc import Mapping

from rest_framework.views import APIView

from subscriptions.api import serializers, views
from subscriptions.api.description import (
    BOOLEAN,
    ID,
    NUMBER,
    TEXT,
    TIME,
    WHOLE,
    Answer,
    Operation,
    Schema,
    error,
    many,
    named,
    one_of,
    or_null,
    shape,
    table,
)
from subscriptions.audit import Kind
from subscriptions.explain.verdicts import Verdict
from subscriptions.group_bindings import State

AUDIT_ID = "5f0b6c1e-8d0c-4d3c-9a52-0f6f0d3c9a11"


def page(name: str, row: Schema) -> Schema:
    """A page of a list."""
    rows = many(named(name, row))
    return named(f"{name}Page", shape(next=or_null(TEXT), previous=or_null(TEXT), results=rows))


MEMBERSHIPS = Answer(
    page(
        "Membership",
        shape(
            id=WHOLE,
            channel=TEXT,
            uid=TEXT,
            joined_version=WHOLE,
            joined_seq=WHOLE,
            joined_at=TIME,
            read_seq=WHOLE,
            hidden_seq=WHOLE,
            group_binding=shape(
                state=one_of(*State.values), sessions=WHOLE, checked_at=or_null(TIME)
            ),
        ),
    ),
    {
        "next": None,
        "previous": None,
        "results": [
            {
                "id": 1,
                "channel": "2:team",
                "uid": "alice",
                "joined_version": 1,
                "joined_seq": 0,
                "joined_at": "2026-01-05T09:00:00Z",
                "read_seq": 7,
                "hidden_seq": 0,
                "group_binding": {
                    "state": "bound",
                    "sessions": 1,
                    "checked_at": "2026-01-05T10:00:00Z",
                },
            }
        ],
    },
)

FINDINGS = Answer(
    page(
        "Finding",
        shape(
            id=WHOLE,
            kind=one_of(*Kind),
            reason=TEXT,
            channel=or_null(TEXT),
            uid=TEXT,
            session=TEXT,
            node=or_null(WHOLE),
            first_seen=TIME,
            last_seen=TIME,
            seen=WHOLE,
            memberships=WHOLE,
            from_seq=or_null(WHOLE),
            to_seq=or_null(WHOLE),
            detail=TEXT,
            healed_at=or_null(TIME),
            healed_by=TEXT,
        ),
    ),
    {
        "next": None,
        "previous": None,
        "results": [
            {
                "id": 1,
                "kind": "missing_group_binding",
                "reason": "",
                "channel": "2:team",
                "uid": "alice",
                "session": "7d3f",
                "node": 1,
                "first_seen": "2026-01-05T09:00:00Z",
                "last_seen": "2026-01-05T09:00:02Z",
                "seen": 2,
                "memberships": 1,
                "from_seq": None,
                "to_seq": None,
                "detail": "",
                "healed_at": "2026-01-05T09:00:02Z",
                "healed_by": "check",
            }
        ],
    },
)

SPANS = shape(last_hour=WHOLE, last_day=WHOLE)
NODE = named(
    "Node",
    shape(
        node=WHOLE,
        host=TEXT,
        pid=WHOLE,
        started_at=TIME,
        sessions=WHOLE,
        groups=WHOLE,
        bindings_expected=WHOLE,
        bindings_held=WHOLE,
        last_check_age_seconds=or_null(NUMBER),
        probe_ms=or_null(NUMBER),
        probes_missed=WHOLE,
        lease_seconds_left={"type": "number"},
        silent=BOOLEAN,
    ),
)
HEALTH = Answer(
    named(
        "SubscriptionHealth",
        shape(
            state=one_of("healthy", "unhealthy", "unchecked"),
            nodes=many(NODE),
            open_findings=table(WHOLE),
            oldest_open_seconds=table(NUMBER),
            heals=SPANS,
            heals_by_step=table(SPANS),
        ),
    ),
    {
        "state": "healthy",
        "nodes": [
            {
                "node": 1,
                "host": "chat-1",
                "pid": 4711,
                "started_at": "2026-01-05T08:00:00Z",
                "sessions": 2,
                "groups": 1,
                "bindings_expected": 2,
                "bindings_held": 2,
                "last_check_age_seconds": 3.5,
                "probe_ms": 1.2,
                "probes_missed": 0,
                "lease_seconds_left": 18.4,
                "silent": False,
            }
        ],
        "open_findings": {},
        "oldest_open_seconds": {},
        "heals": {"last_hour": 0, "last_day": 1},
        "heals_by_step": {"check": {"last_hour": 0, "last_day": 1}},
    },
)

EXPLANATION = Answer(
    named(
        "Explanation",
        shape(
            uid=TEXT,
            channel=TEXT,
            sender=TEXT,
            client_msg_no=TEXT,
            verdict=one_of(*Verdict),
            sentence=TEXT,
            advice=TEXT,
            seq=or_null(WHOLE),
            sessions=many(shape(session=TEXT, verdict=one_of(*Verdict), sentence=TEXT)),
            evidence=many(shape(at=TIME, fact=TEXT, source=TEXT, id=TEXT)),
        ),
    ),
    {
        "uid": "bob",
        "channel": "2:team",
        "sender": "",
        "client_msg_no": "",
        "verdict": "no_session",
        "sentence": "bob had no session then.",
        "advice": "The client pulls it when it connects.",
        "seq": 1,
        "sessions": [],
        "evidence": [
            {
                "at": "2026-01-05T09:00:00Z",
                "fact": "bob joined 2:team",
                "source": "membership change",
                "id": "1",
            }
        ],
    },
)

ASKED = Answer(
    named("Asked", shape(id=ID, url={"type": "string", "format": "uri"})),
    {"id": AUDIT_ID, "url": f"https://chat.example/subscriptions/audits/{AUDIT_ID}"},
    "The nodes answer later, at `url`.",
)
AUDIT_REQUEST = {"scope": {"channel": "2:team", "uid": "alice"}, "kinds": ["missing_group_binding"]}

AUDIT = Answer(
    named(
        "Audit",
        shape(
            id=ID,
            repair=BOOLEAN,
            scope=many(shape("channel uid", channel=TEXT, uid=TEXT)),
            kinds=many(one_of(*Kind)),
            actor=TEXT,
            requested_at=TIME,
            finished_at=or_null(TIME),
            status=one_of("running", "done", "could_not_finish"),
            found=WHOLE,
            repaired=WHOLE,
            left=WHOLE,
            missing_memberships=WHOLE,
            by_kind=table(table(WHOLE)),
            silent_nodes=many(WHOLE),
            errors=many(TEXT),
            nodes=WHOLE,
            done=WHOLE,
            total=WHOLE,
            checked_bindings=WHOLE,
        ),
    ),
    {
        "id": AUDIT_ID,
        "repair": False,
        "scope": [{"channel": "2:team", "uid": "alice"}],
        "kinds": ["missing_group_binding"],
        "actor": "api",
        "requested_at": "2026-01-05T10:00:00Z",
        "finished_at": "2026-01-05T10:00:01Z",
        "status": "done",
        "found": 1,
        "repaired": 0,
        "left": 1,
        "missing_memberships": 1,
        "by_kind": {"missing_group_binding": {"found": 1, "repaired": 0}},
        "silent_nodes": [],
        "errors": [],
        "nodes": 1,
        "done": 1,
        "total": 1,
        "checked_bindings": 1,
    },
)
NO_AUDIT = {404: error(404, "There is no such audit.", "No audit, or no repair, of this id.")}

OPERATIONS: Mapping[type[APIView], Operation] = {
    views.MembershipList: Operation(
        MEMBERSHIPS,
        query=serializers.MembershipQuery,
        given={"channel": "2:team", "uid": "alice", "group_binding": "bound", "limit": 100},
    ),
    views.FindingList: Operation(
        FINDINGS,
        query=serializers.FindingQuery,
        given={"open": "1", "kind": "missing_group_binding", "limit": 100},
    ),
    views.Explanations: Operation(
        EXPLANATION,
        query=serializers.ExplanationQuery,
        given={"uid": "bob", "channel": "2:team", "seq": 1},
    ),
    views.Health: Operation(HEALTH),
    views.AuditCollection: Operation(
        ASKED, body=serializers.AuditRequestSerializer, example=AUDIT_REQUEST, status=202
    ),
    views.RepairCollection: Operation(
        ASKED, body=serializers.AuditRequestSerializer, example=AUDIT_REQUEST, status=202
    ),
    views.AuditDetail: Operation(AUDIT, path={"id": ID}, given={"id": AUDIT_ID}, others=NO_AUDIT),
    views.RepairDetail: Operation(AUDIT, path={"id": ID}, given={"id": AUDIT_ID}, others=NO_AUDIT),
}

"""The server: where to connect, how it is, who is there, who has to go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rest_framework.views import APIView

from messaging.api import metrics, operations, views
from messaging.api.described.shapes import SUCCESS
from subscriptions.api.description import (
    NUMBER,
    SWITCH,
    TEXT,
    TIME,
    WHOLE,
    Answer,
    Operation,
    many,
    named,
    one_of,
    shape,
    uids,
)
from subscriptions.api.serializers import UidsField

ADDRESSES = {"tcp_addr": TEXT, "ws_addr": TEXT, "wss_addr": TEXT}
ADDRESSES_EXAMPLE = {
    "tcp_addr": "",
    "ws_addr": "ws://chat.example",
    "wss_addr": "wss://chat.example",
}

CONNECTION = named(
    "Connection",
    shape(
        id=WHOLE,
        uid=TEXT,
        ip=TEXT,
        port=WHOLE,
        last_activity=TIME,
        uptime=TEXT,
        idle=TEXT,
        pending_bytes=WHOLE,
        **dict.fromkeys(operations.NOT_COUNTED, WHOLE),
        device=TEXT,
        device_id=TEXT,
        version=WHOLE,
        proxy_type_format=TEXT,
        leader_id=WHOLE,
        node_id=WHOLE,
    ),
)
CONNECTION_EXAMPLE: dict[str, Any] = {
    "id": 2203318222960985,
    "uid": "alice",
    "ip": "192.0.2.7",
    "port": 51334,
    "last_activity": "2026-01-05T10:00:00Z",
    "uptime": "1h4s",
    "idle": "3s",
    "pending_bytes": 0,
    **operations.NOT_COUNTED,
    "device": "Web(slave)",
    "device_id": "browser-1",
    "version": 0,
    "proxy_type_format": "",
    "leader_id": 1,
    "node_id": 1,
}

VARZ = named(
    "Varz",
    shape(
        "conns",
        uptime=TEXT,
        goroutine=WHOLE,
        mem=WHOLE,
        cpu=NUMBER,
        server_id=TEXT,
        connections=WHOLE,
        user_handler_count=WHOLE,
        user_handler_conn_count=WHOLE,
        slow_clients=WHOLE,
        in_msgs=WHOLE,
        out_msgs=WHOLE,
        in_bytes=WHOLE,
        out_bytes=WHOLE,
        retry_queue=WHOLE,
        conversation_cache_count=WHOLE,
        server_name=TEXT,
        version=TEXT,
        **ADDRESSES,
        api_url=TEXT,
        manager_addr=TEXT,
        manager_on=SWITCH,
        manager_uid=TEXT,
        manager_token_on=SWITCH,
        commit=TEXT,
        commit_date=TEXT,
        tree_state=TEXT,
        conns=many(CONNECTION),
    ),
)
VARZ_EXAMPLE = {
    "uptime": "2d3h4m5s",
    "goroutine": 9,
    "mem": 91226112,
    "cpu": 1.25,
    "server_id": "1",
    "connections": 1,
    "user_handler_count": 1,
    "user_handler_conn_count": 1,
    "slow_clients": 0,
    "in_msgs": 7,
    "out_msgs": 14,
    "in_bytes": 0,
    "out_bytes": 0,
    "retry_queue": 0,
    "conversation_cache_count": 0,
    "server_name": operations.SERVER_NAME,
    "version": operations.VERSION,
    **ADDRESSES_EXAMPLE,
    "api_url": "https://chat.example",
    "manager_addr": "",
    "manager_on": 0,
    "manager_uid": "",
    "manager_token_on": 1,
    "commit": "",
    "commit_date": "",
    "tree_state": "",
    "conns": [CONNECTION_EXAMPLE],
}

OPERATIONS: Mapping[type[APIView], Operation] = {
    operations.Route: Operation(
        Answer(named("Addresses", shape(**ADDRESSES)), ADDRESSES_EXAMPLE),
        query=operations.RouteQuery,
        given={"intranet": "0"},
    ),
    operations.RouteBatch: Operation(
        Answer(
            many(shape(**ADDRESSES, uids=many(TEXT))),
            [{**ADDRESSES_EXAMPLE, "uids": ["alice", "bob"]}],
        ),
        body=uids(UidsField()),
        query=operations.RouteQuery,
        given={"intranet": "0"},
        example=["alice", "bob"],
    ),
    operations.Varz: Operation(
        Answer(VARZ, VARZ_EXAMPLE),
        query=operations.VarzQuery,
        given={"show": "conn", "conn_limit": 20, "node_id": 0},
    ),
    operations.VarzSetting: Operation(
        Answer(
            shape(
                logger=shape(trace_on=SWITCH, loki_on=SWITCH),
                prometheus_on=SWITCH,
                stress_on=SWITCH,
            ),
            {"logger": {"trace_on": 0, "loki_on": 0}, "prometheus_on": 1, "stress_on": 0},
        )
    ),
    operations.Connz: Operation(
        Answer(
            shape(
                connections=many(CONNECTION),
                now=TIME,
                total=WHOLE,
                offset=WHOLE,
                limit=WHOLE,
            ),
            {
                "connections": [CONNECTION_EXAMPLE],
                "now": "2026-11-29T07:00:00Z",
                "total": 1,
                "offset": 0,
                "limit": 20,
            },
        ),
        query=operations.ConnzQuery,
        given={"uid": "ali", "sort": "uptimeDesc", "offset": 0, "limit": 20, "node_id": 0},
    ),
    operations.ConnectionKick: Operation(
        SUCCESS,
        body=operations.ConnectionBody,
        example={"uid": "alice", "conn_id": CONNECTION_EXAMPLE["id"]},
    ),
    operations.ConnectionRemove: Operation(
        SUCCESS,
        body=operations.ConnectionBody,
        example={"uid": "alice", "conn_id": CONNECTION_EXAMPLE["id"]},
    ),
    operations.Alive: Operation(Answer(shape(status=one_of("ok")), {"status": "ok"})),
    views.Health: Operation(
        Answer(shape(status=one_of("ok")), {"status": "ok"}),
        others={
            500: Answer(
                shape(status=one_of("error"), message=TEXT),
                {"status": "error", "message": "the database does not answer"},
                "The database does not answer.",
            )
        },
    ),
    views.Ready: Operation(
        Answer(shape(ready=one_of(True)), {"ready": True}),
        others={
            503: Answer(
                shape(ready=one_of(False), reason=TEXT),
                {"ready": False, "reason": "draining"},
                "New sessions should go elsewhere.",
            )
        },
    ),
    metrics.Metrics: Operation(
        Answer(TEXT, 'wukongim_findings_open{kind="log_hole"} 0.0\n'),
        media_types=("text/plain", "application/openmetrics-text"),
    ),
}

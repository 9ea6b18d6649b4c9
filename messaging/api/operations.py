"""What clients ask before they connect, and what an operator asks of a server (http-api §1.20 on):
addresses, devices and connections to end, who is connected, what a process has done."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db.models import DurationField, ExpressionWrapper, F, QuerySet
from django.db.models.functions import Now
from django.utils import timezone
from prometheus_client import ProcessCollector
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import DateTimeField

from messaging import auth, node, registry
from messaging.api.serializers import ChoiceField, OnlineBody
from messaging.conf import conf
from messaging.metrics import REGISTRY
from messaging.models import Session
from messaging.online import ID_DIGITS, connection_number
from subscriptions.api.base import ApiView, JSONArrayBody, OpenView
from subscriptions.api.exceptions import BadRequest
from subscriptions.api.serializers import Body, SeqField, TextField, UidField, WholeField

SERVER_NAME = "WuKongIM"
VERSION = "2.2.5"
"""The WuKongIM whose API this is; callers look at it to know what they may ask."""

APP, WEB, DESKTOP = 0, 1, 2
ALL_FLAGS = -1
DEVICES = {APP: "App", WEB: "Web", DESKTOP: "PC", 99: "System"}
LEVELS = {0: "slave", registry.MASTER: "master"}

LARGEST_ID = 16**ID_DIGITS - 1

CONNECTIONS, MOST_CONNECTIONS = 20, 1_000
"""Connections of one page: unless told, and at most."""


# --- serializers ------------------------------------------------------------------------------


class RouteQuery(Body):
    """GET /route and POST /route/batch. `uid` is ignored: every node takes everybody."""

    intranet = ChoiceField(["0", "1"], default="0", required=False)


class QuitBody(Body):
    """POST /user/device_quit: adds `flags`."""

    uid = UidField()
    device_flag = WholeField(low=ALL_FLAGS, high=255, default=APP)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """-1 is the three kinds of device that people have."""
        flag = attrs["device_flag"]
        return {**attrs, "flags": (APP, WEB, DESKTOP) if flag == ALL_FLAGS else (flag,)}


class VarzQuery(Body):
    """GET /varz."""

    show = TextField(required=False, blank=True, default="")
    conn_limit = SeqField(required=False, default=CONNECTIONS, longest=19)
    node_id = SeqField(required=False, default=0, longest=19)


ORDERS = {
    "id": ("pk",),
    "idDesc": ("-pk",),
    "uptime": ("-opened_at", "pk"),
    "uptimeDesc": ("opened_at", "pk"),
}
"""Orders of a list of connections: by what the database knows of all of them."""


class ConnzQuery(Body):
    """GET /connz."""

    uid = TextField(required=False, blank=True, default="")
    sort = ChoiceField(list(ORDERS), default="id", required=False)
    offset = SeqField(required=False, default=0, longest=19)
    limit = SeqField(required=False, default=CONNECTIONS, longest=19)
    node_id = SeqField(required=False, default=0, longest=19)


class ConnectionBody(Body):
    """POST /conn/kick and /conn/remove. `node_id` and `op_node_id` are ignored: the session's row
    says which node has it."""

    uid = UidField()
    conn_id = WholeField(low=1, high=LARGEST_ID)


# --- where to connect -------------------------------------------------------------------------


class Route(OpenView):
    """GET /route: the addresses for sockets: as they are set, or this very host."""

    def get(self, request: Request) -> Response:
        """`ws_addr` is right for the scheme of the request, so clients that know only it do."""
        return Response(addresses(request, self.query(RouteQuery)["intranet"] == "1"))


class RouteBatch(OpenView):
    """POST /route/batch: the addresses for sockets of many uids: one group with all of them."""

    parser_classes = [JSONArrayBody]

    def post(self, request: Request) -> Response:
        """A list with one entry, as every node takes everybody."""
        intranet = self.query(RouteQuery)["intranet"] == "1"
        uids = self._cleaned(OnlineBody(data={"uids": request.data}))["uids"]
        return Response([{**addresses(request, intranet), "uids": uids}])


def addresses(request: Request, intranet: bool = False) -> dict[str, str]:
    """Where clients open sockets. The intranet is told of the binary ones alone."""
    host = request.get_host()
    secure = f"wss://{host}" if request.is_secure() else ""
    return {
        "tcp_addr": conf().tcp_addr,
        "ws_addr": "" if intranet else conf().ws_addr or secure or f"ws://{host}",
        "wss_addr": "" if intranet else conf().wss_addr or secure,
    }


# --- who has to go ----------------------------------------------------------------------------


class DeviceQuit(ApiView):
    """POST /user/device_quit: end a uid's sessions on one kind of device, or on all, for good."""

    def post(self, request: Request) -> Response:
        """Nobody comes in there before there is a new token. Unknown devices are no error."""
        body = self.body(QuitBody)
        auth.quit_devices(body["uid"], body["flags"])
        return Response({"status": 200})


class ConnectionKick(ApiView):
    """POST /conn/kick: tell one connection to go (reason 12), and close it."""

    def post(self, request: Request) -> Response:
        """A connection that is not there is no error, and neither is one of somebody else."""
        body = self.body(ConnectionBody)
        auth.kick_connection(body["uid"], f"{body['conn_id']:0{ID_DIGITS}x}")
        return Response({"status": 200})


class ConnectionRemove(ConnectionKick):
    """POST /conn/remove: the same as /conn/kick: whoever is sent away is told so."""


# --- who is there -----------------------------------------------------------------------------


class Connz(ApiView):
    """GET /connz: the live connections, on whichever node."""

    def get(self, request: Request) -> Response:
        """What another node's memory has of a connection is not known here: it is 0 or empty."""
        asked = self.query(ConnzQuery)
        rows = registry.live_sessions()
        if asked["uid"]:
            rows = rows.filter(uid__contains=asked["uid"])
        if asked["node_id"]:
            rows = rows.filter(node=asked["node_id"])
        limit = _limit(asked["limit"])
        found = rows.order_by(*ORDERS[asked["sort"]])
        return Response(
            {
                "connections": _connections(found, asked["offset"], limit),
                "now": _json_time(timezone.now()),
                "total": rows.count(),
                "offset": asked["offset"],
                "limit": limit,
            }
        )


def _limit(asked: int) -> int:
    return min(asked or CONNECTIONS, MOST_CONNECTIONS)


def _connections(rows: QuerySet[Session], offset: int, limit: int) -> list[dict[str, Any]]:
    """A part of these rows, as JSON. Ages are the database's, whose times they are of."""
    if offset > 1 << 62:  # beyond what a database counts
        return []
    age = ExpressionWrapper(Now() - F("opened_at"), output_field=DurationField())
    page = rows.annotate(age=age)[offset : offset + limit]
    return [_connection(each) for each in page]


def _connection(row: Any) -> dict[str, Any]:
    """One connection: its row, and what this process's node knows of it if it is there."""
    current = node.current_node()
    member: Any = current.members.get(row.pk) if current else None
    idle = timedelta(seconds=time.monotonic() - member.heard_at) if member else None
    client = member.scope.get("client") if member else None
    return {
        "id": connection_number(row.pk),
        "uid": row.uid,
        "ip": row.address,
        "port": client[1] if client else 0,
        "last_activity": _json_time(row.opened_at if idle is None else timezone.now() - idle),
        "uptime": _duration(row.age),
        "idle": "" if idle is None else _duration(idle),
        "pending_bytes": member.outbox.waiting_bytes if member else 0,
        **NOT_COUNTED,
        "device": f"{DEVICES.get(row.device_flag, 'Unknown')}({LEVELS[row.device_level]})",
        "device_id": row.device_id,
        "version": 0,
        "proxy_type_format": "",
        "leader_id": row.node_id,
        "node_id": row.node_id,
    }


NOT_COUNTED = dict.fromkeys(
    (
        "in_msgs", "out_msgs", "in_msg_bytes", "out_msg_bytes",
        "in_packets", "out_packets", "in_packet_bytes", "out_packet_bytes",
    ),
    0,
)  # fmt: skip
"""What WuKongIM counts of each connection, and nobody here does."""


def _json_time(at: datetime) -> Any:
    return DateTimeField().to_representation(at)


def _duration(age: timedelta) -> str:
    """`1d2h3m4s`, from the largest unit that is not 0 on."""
    seconds = max(0, int(age.total_seconds()))
    parts = {"d": seconds // 86_400, "h": seconds // 3600 % 24, "m": seconds // 60 % 60}
    words = [f"{number}{unit}" for unit, number in parts.items()]
    while words and words[0].startswith("0"):
        words.pop(0)
    return "".join([*words, f"{seconds % 60}s"])


# --- what this process is and has done --------------------------------------------------------


class Varz(ApiView):
    """GET /varz: what the process that answers is, holds and has done."""

    def get(self, request: Request) -> Response:
        """What this server does not have is 0 or empty. 400 for another node than its own."""
        asked = self.query(VarzQuery)
        current = node.current_node()
        own = current.id if current else 0
        if asked["node_id"] not in (0, own):
            raise BadRequest(f"node_id: this process is node {own}, and knows of itself alone.")
        answer = {**_process(), **_held(current), **_done(), **_set_up(request)}
        if asked["show"] == "conn":
            rows = registry.live_sessions().filter(node=own).order_by(*ORDERS["uptime"])
            answer["conns"] = _connections(rows, 0, _limit(asked["conn_limit"]))
        return Response(answer)


def _process() -> dict[str, Any]:
    """Of the operating system's; all 0 where it does not say (outside Linux)."""
    said = {
        sample.name: sample.value
        for family in ProcessCollector(registry=None).collect()
        for sample in family.samples
    }
    started = said.get("process_start_time_seconds", time.time())
    age = max(time.time() - started, 0.001)
    return {
        "uptime": _duration(timedelta(seconds=age)),
        "goroutine": threading.active_count(),
        "mem": int(said.get("process_resident_memory_bytes", 0)),
        "cpu": round(100 * said.get("process_cpu_seconds_total", 0) / age, 2),
    }


def _held(current: node.Node | None) -> dict[str, Any]:
    """Of this process's node."""
    members = list(current.members.values()) if current else []
    return {
        "server_id": str(current.id) if current else "",
        "connections": len(members),
        "user_handler_count": len({each.row.uid for each in members}),
        "user_handler_conn_count": len(members),
        "slow_clients": sum(bool(each.session.lagging) for each in members),
    }


def _done() -> dict[str, Any]:
    """As metrics count it: bytes they do not."""
    return {
        "in_msgs": _total("wukongim_messages_appended_total"),
        "out_msgs": _total("wukongim_deliveries_total"),
        "in_bytes": 0,
        "out_bytes": 0,
        "retry_queue": 0,
        "conversation_cache_count": 0,
    }


def _total(name: str) -> int:
    """The sum of a counter over its labels, of this process."""
    families: Iterable[Any] = REGISTRY.restricted_registry([name]).collect()
    return int(sum(sample.value for family in families for sample in family.samples))


def _set_up(request: Request) -> dict[str, Any]:
    return {
        "server_name": SERVER_NAME,
        "version": VERSION,
        **addresses(request),
        "api_url": f"{request.scheme}://{request.get_host()}",
        "manager_addr": "",
        "manager_on": 0,
        "manager_uid": "",
        "manager_token_on": int(bool(settings.WUKONGIM_API_TOKEN)),
        "commit": "",
        "commit_date": "",
        "tree_state": "",
    }


class VarzSetting(ApiView):
    """GET /varz/setting: which of WuKongIM's means of watching there are."""

    def get(self, request: Request) -> Response:
        """Of them, Prometheus's alone."""
        logger = {"trace_on": 0, "loki_on": 0}
        return Response({"logger": logger, "prometheus_on": 1, "stress_on": 0})


class Alive(OpenView):
    """GET /healthz: whether the process answers at all."""

    def get(self, request: Request) -> Response:
        """Always 200: a database that is away is no reason to end the process."""
        return Response({"status": "ok"})

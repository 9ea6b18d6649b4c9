"""The settings of this app, read from `settings.MESSAGING` through one frozen dataclass."""

from __future__ import annotations

from dataclasses import dataclass, field

from messaging.protocol.bodies import PAYLOAD_BYTES
from messaging.protocol.jsonrpc import POSITIONS
from subscriptions.conf import OR_ZERO, read

STEPS = ("beat", "sweep", "check", "probe", "sessions")


@dataclass(frozen=True, slots=True)
class MessagingConf:
    """Every number of this app, with the reason for its default."""

    token_required: bool = True
    """Whether a client must show the token of its device. Off only behind a trusted front."""

    person_allow_lists: bool = False
    """Whether a person message needs its sender on the receiver's allow list, unless the receiver
    lets strangers write. Off as in WuKongIM: no list then means that everybody may."""

    first_frame_seconds: float = 2.0
    """A socket that says nothing for this long is closed (WuKongIM v2's limit, protocol §1.5)."""

    idle_seconds: float = 180.0
    """Client silence after which a session is closed (protocol §1.5). SDKs ping each 25–60 s."""

    frame_bytes: int = 1 << 20
    """Largest frame taken: WuKongIM's 1 MiB. The server refuses it before we see it (uvicorn)."""

    payload_bytes: int = PAYLOAD_BYTES
    """Largest message body. 64 KiB × 500 messages of a fetch = 32 MiB at worst in memory."""

    event_bytes: int = PAYLOAD_BYTES
    """Snapshots of a message that is written bit by bit, all keys together, as JSON. 64 KiB are
    10,000 words. Each delta writes its snapshot anew: 20 deltas a second × 64 KiB = 1.3 MB/s at
    worst, and a page of 1,000 such messages is as large as one of the largest payloads."""

    outbox_bytes: int = 1 << 20
    """Frames waiting for one socket. 1 MiB × 10,000 stalled sessions ≈ 10 GiB at worst; full means
    the session catches up from the log at its own pace, nothing is lost."""

    outbox_low: int = 1 << 18
    """Below this many waiting bytes a lagging session is fetched for again: a quarter, so that a
    fetch is worth its query."""

    lag_messages: int = 10_000
    """A session this far behind is asked to come back: it pulls history faster than we push."""

    resume_positions: int = field(default=POSITIONS, metadata=OR_ZERO)
    """Positions that a connect may name: as many as the memberships of a heavy user. 1,000 × 128
    bytes is a first frame of 128 KB, read in 8 ms; three statements a thousand of them. 0: none."""

    in_flight: int = 64
    """Sends of one session that wait for the log; then its frames wait in the kernel. 64 × 64 KiB
    = 4 MiB a session at worst."""

    log_queue: int = 5_000
    """Drafts that wait for the log. At 4,000 msg/s that is more than a second: beyond it senders
    are answered 22 (rate limit) at once instead of late."""

    log_batch: int = 500
    """Drafts of one transaction: about 20 ms of SQLite, so a batch is never noticed."""

    fetch_page: int = 500
    """Messages that one read of the log returns."""

    change_page: int = 1_000
    """Changes of a channel that one read returns."""

    publish_queue: int = 10_000
    """Doorbells that wait for the layer: 0.3 s of Redis (76,000/s), 10 MiB at 1 KiB each, 640 MiB
    at worst. Full: dropped and counted; the tick finds the message."""

    layer_seconds: float = 2.0
    """Time one call of the channel layer may take before it is given up: the tick's own period."""

    refusals_a_minute: int = 600
    """Refused sends that a process writes down in a minute, in one transaction a second: 10 a
    second are nothing beside 4,000 messages. More are counted on the last row that was."""

    refusals_a_minute_of_one: int = 30
    """Of those, from one sender: who is refused twenty times over does not crowd out twenty
    others."""

    refusals_kept: int = 100_000
    """Rows of refused sends that are kept, the newest: about 30 MB, and three hours at the most
    that one process writes."""

    tick_seconds: float = 2.0
    """Period of the tick, and up to 5 % more. With `behind_grace` a lost doorbell is mended within
    3 s."""

    behind_grace: float = field(default=0.3, metadata=OR_ZERO)
    """Seconds a doorbell may still be under way before a binding below its head counts as deaf."""

    check_ticks: int = 2
    """Ticks in which all local bindings are compared in memory once: 2 × 2 s = 4 s < 5 s. As often
    each session looks after its own acknowledgements."""

    member_slices: int = 25
    """Ticks in which all local uids are compared with the database once: 25 × 2 s = 50 s < 60 s."""

    steps: tuple[str, ...] = STEPS
    """Steps of the tick that run. Taking one out is for tests that show what it is for."""

    lease_seconds: float = 20.0
    """A node that has not renewed for ten ticks is gone; and so is, for a node, a connection to
    PostgreSQL on which a statement has no answer by then."""

    drain_seconds: float = field(default=6.0, metadata=OR_ZERO)
    """Time over which a node that ends asks its sessions to come back. 10,000 sessions / 6 s =
    1,700 connects a second for the others. The worst end takes 6 + 5 (last words) + 3 (requests) +
    2 (log) + 1 (refusals) + 4 × 2 (layer, rows, lease, threads) = 25 s of the 28 that it has; at
    most 8, so that another second is left."""

    answer_seconds: float = 2.0
    """How often a node looks for audits that nobody rang for: as often as the tick. No switch
    turns it off."""

    probe_misses: int = 3
    """Probes that may be lost before the layer's connection is remade: 3 × 2 s."""

    resend_seconds: float = 60.0
    """A message not acknowledged by then, though a later one was, is sent again (as V2 does)."""

    resends: int = field(default=3, metadata=OR_ZERO)
    """Re-sends before a message is given up and recorded."""

    unacked: int = 256
    """Messages a session keeps for re-sending; older ones are forgotten (the client pulls)."""

    database_threads: int = 4
    """Threads that read for this process. Writes have one of their own."""

    tcp_addr: str = ""
    """Where clients open binary sockets, as `host:port`, for `/route`. Empty: nowhere."""

    ws_addr: str = ""
    """Where clients open sockets: `ws://…`, or `wss://…`. Empty: the host that they asked."""

    wss_addr: str = ""
    """The same over TLS: `wss://…`. Empty: the host that they asked, if they asked over TLS."""


def conf() -> MessagingConf:
    """The settings in force."""
    return read(MessagingConf, "MESSAGING")

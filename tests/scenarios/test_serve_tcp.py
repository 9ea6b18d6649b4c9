"""`manage.py serve_tcp` as a process of its own, beside `serve`: one chat, and an end as tidy."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from messaging.protocol.reasons import Reason
from tests.support.binary_peers import DISCONNECT, BinaryPeer, carrier_to
from tests.support.peers import Peer
from tests.support.server import ServerProcess


class TcpProcess(ServerProcess):
    """`serve_tcp` on the data of another server."""

    def __init__(self, beside: ServerProcess, *options: str) -> None:
        super().__init__(WUKONGIM_DATABASE_URL=beside.database_url)
        self.folder, self.environment, self.options = beside.folder, beside.environment, options
        self.url = f"tcp://127.0.0.1:{self.port}"

    @property
    def _arguments(self) -> list[str]:
        return ["manage.py", "serve_tcp", "--port", str(self.port), *self.options]

    def _wait_until_up(self) -> None:
        line = f"Serving: chat {self.url},"
        deadline = time.monotonic() + 60
        while line not in self.log_text():
            assert self.process is not None
            assert self.process.poll() is None, self.log_text()[-4000:]
            assert time.monotonic() < deadline, "serve_tcp did not start"
            time.sleep(0.05)


@pytest.fixture(scope="module")
def server():
    with ServerProcess() as server:
        for uid in ("alice", "bob"):
            server.make_user(uid)
        server.make_group("team", "alice", "bob")
        yield server


@pytest.fixture
def tcp(server):
    with TcpProcess(server) as tcp:
        yield tcp


async def chat(alice, bob, text):
    """Both hear each other."""
    await alice.send("team", text)
    await bob.until_heard("team", text)
    await bob.send("team", f"{text}, too")
    await alice.until_heard("team", f"{text}, too")


async def test_mobile_and_web_clients_chat_across_the_two_processes(server, tcp):
    async with BinaryPeer(tcp.url, "alice") as alice, Peer(server.url, "bob") as bob:
        await chat(alice, bob, "hello")
        await alice.send("bob", "between us", 1)
        await bob.until_heard("alice", "between us")
        server.post(
            "/channel/subscriber_remove", channel_id="team", channel_type=2, subscribers=["alice"]
        )
        ack = await alice.send("team", "still here?")
        assert ack["reasonCode"] == Reason.SUBSCRIBER_NOT_EXIST
        server.make_group("team", "alice", "bob")
        await bob.send("team", "welcome back")
        await alice.until_heard("team", "welcome back")


async def test_kick_over_http_ends_a_session_of_the_other_process(server, tcp):
    async with BinaryPeer(tcp.url, "alice") as alice:
        server.post("/user/device_quit", uid="alice", device_flag=2)
        await asyncio.wait_for(alice.reader, 10)
        [notice] = alice.notices
        assert (notice["type"], notice["reasonCode"]) == (DISCONNECT, Reason.CONNECT_KICK)
    server.make_user("alice")


async def test_stopping_ends_every_session_and_the_lease(server, tcp):
    async with BinaryPeer(tcp.url, "alice") as alice, BinaryPeer(tcp.url, "bob") as bob:
        await chat(alice, bob, "a last word")
        futures = [alice.post("send", alice.message("team", f"m{n}")) for n in range(200)]
        await futures[0]
        assert await asyncio.to_thread(tcp.stop) == 0
        for peer in (alice, bob):
            await asyncio.wait_for(peer.reader, 5)
        answers = await asyncio.gather(*futures, return_exceptions=True)
    acknowledged = {each["messageSeq"] for each in answers if isinstance(each, dict)}
    [(head,)] = server.query("SELECT max(seq) FROM wukongim_messaging_message")
    assert max(acknowledged) == head, "what was stored was acknowledged"
    [(stopped, closed)] = server.query(
        "SELECT n.stopped_at IS NOT NULL, count(DISTINCT s.closed_because)"
        " FROM wukongim_messaging_node n JOIN wukongim_messaging_session s ON s.node_id = n.id"
        " WHERE n.id = (SELECT max(id) FROM wukongim_messaging_node) GROUP BY 1"
    )
    assert (bool(stopped), closed) == (True, 1)


async def test_reader_that_stalled_is_cut_and_holds_up_no_stop(server, tcp):
    async with BinaryPeer(tcp.url, "alice") as alice, BinaryPeer(tcp.url, "bob") as bob:
        await chat(alice, bob, "hello")
        bob.carrier.writer.transport.pause_reading()
        for _ in range(200):
            await alice.send("team", "x" * 30_000)
        began = time.monotonic()
        assert await asyncio.to_thread(tcp.stop) == 0
        assert time.monotonic() - began < 15


async def test_metrics_of_the_process_are_shown_on_a_port_of_their_own(server):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with TcpProcess(server, "--metrics-port", str(port)) as tcp:
        async with BinaryPeer(tcp.url, "alice"):
            url = f"http://127.0.0.1:{port}/metrics"
            answer = await asyncio.to_thread(httpx.get, url, trust_env=False)
            assert "\nwukongim_sessions_opened_total 1.0\n" in answer.text
        done = server.manage("serve_tcp", "--port", "0", "--metrics-port", str(port), check=False)
        assert f"Cannot show metrics on port {port}: Address already in use." in done.stderr


# --- TLS -----------------------------------------------------------------------------------------


def certificate(folder: Path) -> tuple[Path, Path]:
    """One for this machine, signed by itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    )
    own, secret = folder / "own.pem", folder / "key.pem"
    own.write_bytes(builder.sign(key, SHA256()).public_bytes(Encoding.PEM))
    secret.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return own, secret


async def test_tls_is_served_with_a_certificate_and_nothing_else_is(server, tmp_path):
    own, secret = certificate(tmp_path)
    trust = ssl.create_default_context(cafile=own)
    with TcpProcess(server, "--certificate", str(own), "--key", str(secret)) as tcp:
        assert f"{tcp.url}, TLS" in tcp.log_text()
        url = f"tcp://localhost:{tcp.port}"
        async with BinaryPeer(url, "alice", tls=trust) as alice, Peer(server.url, "bob") as bob:
            await chat(alice, bob, "unseen")
            plain = await carrier_to(url)
            await plain.send(alice.client.connect("alice", alice.token))
            assert await asyncio.wait_for(plain.packet(), 70) is None
            await plain.close()
            assert await asyncio.to_thread(tcp.stop) == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--key", "x.pem"], "A --key goes with a --certificate."),
        (["--certificate", "nowhere.pem"], "There is no certificate with its key in nowhere.pem"),
        (["--certificate", "README.md"], "There is no certificate with its key in README.md"),
        (["--port", "x"], "'x' is no port"),
    ],
)
def test_options_that_cannot_be_served_say_why(server, options, words):
    done = server.manage("serve_tcp", *options, check=False)
    assert done.returncode != 0
    assert words in done.stderr
    assert "Traceback" not in done.stderr

"""`make mutants`: switch off one safeguard after another; the tests must notice each.

Every mutant is a copy of the tree with one edit, in which the tests that are named beside it run
until the first failure. That failure counts only if the same test passes in the tree as it is. Exit
code 0: all noticed. `make mutants ARGS="lane slow"` tries those whose names have one of the words.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Mutant:
    """One safeguard, and the edit that switches it off: `old` stands exactly once in `file`.

    `tests` are files and folders of tests/ that ought to notice; `network`: on PostgreSQL and
    Valkey.
    """

    name: str
    file: str
    old: str
    new: str
    tests: str
    network: bool = False


MUTANTS = [
    # --- sockets ---
    Mutant(
        "the end of a pause when the connection is lost",
        "messaging/sockets.py",
        "        if self.paused:\n            self.resume_writing()\n        self._let_go()",
        "        self._let_go()",
        "messaging/test_sockets.py",
    ),
    # --- the database ---
    Mutant(
        "the end of a statement that nobody answers",
        "messaging/database.py",
        "and _hang_up(call.connection)",
        "and False",
        "messaging/test_database.py",
        network=True,
    ),
    Mutant(
        "a thread that works is not hung up on",
        "messaging/database.py",
        ' or held.info.transaction_status.name != "ACTIVE"',
        "",
        "messaging/test_database.py",
        network=True,
    ),
    Mutant(
        "a thread is looked at anew with each statement",
        "messaging/database.py",
        "        self.looks = 0\n        return execute",
        "        return execute",
        "messaging/test_database.py",
        network=True,
    ),
    Mutant(
        "a node looks at what its threads wait for",
        "messaging/node.py",
        "self._tasks = self._run_all(self.database.watch)",
        "self._tasks = []",
        "messaging/test_database.py",
        network=True,
    ),
    # --- hearing ---
    Mutant(
        "the fence: what a binding may hear",
        "subscriptions/bindings.py",
        "return any(interval.covers(version) for interval in self.intervals)",
        "return True",
        "subscriptions/test_bindings.py messaging/test_schedules.py",
    ),
    Mutant(
        "the fence: who has left",
        "subscriptions/bindings.py",
        "return self.left_version is None and version >= self.joined_version",
        "return version >= self.joined_version",
        "messaging/test_schedules.py",
    ),
    Mutant(
        "the fence: withhold what cannot be judged",
        "messaging/hub.py",
        "if version > binding.version:",
        "if False:",
        "messaging/test_schedules.py scenarios",
    ),
    Mutant(
        "the gap fetch: notice the hole",
        "messaging/hub.py",
        "if seq != heard + 1:",
        "if False:",
        "messaging/test_schedules.py scenarios",
    ),
    Mutant(
        "the gap fetch: read what is missing",
        "messaging/catch_up.py",
        "while behind := self.hub.behind(channel):",
        "while behind := []:",
        "messaging/test_schedules.py scenarios",
    ),
    Mutant(
        "the second look after binding",
        "messaging/node.py",
        "        for channel in outdated:  # of new",
        "        for channel in []:  # of new",
        "scenarios/test_connect.py scenarios",
    ),
    Mutant(
        "the mark of a channel that went on while a session was let in",
        "messaging/hub.py",
        "if version < group.newest or head < group.head:",
        "if version < group.newest:",
        "scenarios/test_connect.py",
    ),
    Mutant(
        "the mark of a channel that went on while a session was let in where it had been",
        "messaging/node.py",
        "if self.hub.is_outdated(session, start.channel):",
        "if False:",
        "scenarios/test_resume.py",
    ),
    Mutant(
        "the heads of groups whose first reading failed",
        "messaging/node.py",
        "            self.pending_groups = joined | self.pending_groups",
        "            pass",
        "scenarios/test_connect.py",
    ),
    Mutant(
        "the names of groups that ended while names were read",
        "messaging/node.py",
        "            asked |= new\n",
        "            break\n",
        "scenarios/test_connect.py",
    ),
    # --- the tick ---
    Mutant(
        "the sweep",
        "messaging/tick.py",
        '"""Read what is new in the database, whether or not anybody rang."""',
        "return",
        "scenarios/test_sweep.py scenarios/test_raw_sql.py",
    ),
    Mutant(
        "the sweep's memory of transactions under way",
        "subscriptions/marks.py",
        "(change_mark = ANY(%s) OR change_mark >= %s)",
        "(change_mark = ANY(%s) AND false OR change_mark >= %s)",
        "subscriptions/test_marks.py",
        network=True,
    ),
    Mutant(
        "the check",
        "messaging/tick.py",
        '"""A slice of the check, mended at once; after a round the node counts as checked."""',
        "return",
        "scenarios/test_lost_binding.py scenarios",
    ),
    Mutant(
        "the third witness",
        "subscriptions/audit.py",
        'return "position"',
        'return ""',
        "scenarios/test_findings.py",
    ),
    Mutant(
        "the sweep of dead nodes",
        "messaging/tick.py",
        "if now - self._beating_since > self.node.conf.lease_seconds:",
        "if False:",
        "messaging/test_tick.py scenarios/test_two_nodes.py",
    ),
    Mutant(
        "the registration of a node that was swept",
        "messaging/tick.py",
        "await self.node.database.write(registry.register_again, self.node.id, rows)",
        "pass",
        "scenarios/test_node_life.py messaging/test_tick.py",
    ),
    Mutant(
        "the leave of a deaf node's sessions",
        "messaging/tick.py",
        "node.deserted = await node.database.read(registry.others_hear, node.id)",
        "node.deserted = False",
        "scenarios/test_node_life.py",
    ),
    Mutant(
        "the join that a missed doorbell asks for",
        "messaging/catch_up.py",
        "self.layer.rejoin_soon(self.hub.groups[channel].name for channel in behind)",
        "pass",
        "scenarios/test_lost_binding.py scenarios/test_findings.py",
    ),
    Mutant(
        "the end of an outbox that fails",
        "messaging/outbox.py",
        "        finally:  # or one that raises would be the last that is written to\n",
        "        except ZeroDivisionError:\n",
        "messaging/test_outbox.py",
    ),
    Mutant(
        "a loop that begins again",
        "messaging/loops.py",
        "        await asyncio.sleep(PAUSE)\n",
        "        return\n",
        "messaging/test_loops.py",
    ),
    Mutant(
        "a loop of a node that begins again",
        "messaging/node.py",
        "self.loop.create_task(run_forever(each), name=each.__name__) for each in loops",
        "self.loop.create_task(each(), name=each.__name__) for each in loops",
        "scenarios/test_node_life.py",
    ),
    Mutant(
        "a lane of the log that begins again",
        "messaging/log.py",
        'loop.create_task(run_forever(self._run), name="message-log"),',
        'loop.create_task(self._run(), name="message-log"),',
        "messaging/test_log_lanes.py",
        network=True,
    ),
    Mutant(
        "the listener that may fail",
        "messaging/log.py",
        '        except Exception:\n            logger.exception("message.untold"',
        '        except ZeroDivisionError:\n            logger.exception("message.untold"',
        "messaging/test_log_lanes.py",
        network=True,
    ),
    Mutant(
        "the connection that knows that it was replaced",
        "messaging/redis_layer.py",
        "            if self._hearing is not hearing:\n                return  #",
        "            if False:\n                return  #",
        "messaging/test_redis_layer.py",
    ),
    Mutant(
        "the probes that cannot be missed",
        "messaging/tick.py",
        "missed = probe.sent > probe.seen and not self._remakes",
        "missed = probe.sent > probe.seen",
        "messaging/test_tick.py",
    ),
    Mutant(
        "what a connection knows, kept from the one before it",
        "messaging/redis_layer.py",
        "        if self._hearing is hearing:\n            self._hearing = None\n",
        "        if True:\n            self._hearing = None\n",
        "messaging/test_redis_layer.py",
    ),
    Mutant(
        "the new connection of a deaf node",
        "messaging/tick.py",
        "        await self.node.remake_layer()\n",
        "",
        "scenarios/test_deaf_node.py",
    ),
    Mutant(
        "what went from a table since the tables agreed",
        "subscriptions/audit.py",
        "moved = {*now}.symmetric_difference(before) if before else now",
        "moved = {*now}.difference(before) if before else now",
        "subscriptions/test_audit.py",
    ),
    Mutant(
        "the tables of those who are gone",
        "subscriptions/audit.py",
        "return not any(key in others.get(item, ()) for key, items in gone for item in items)",
        "return True",
        "subscriptions/test_audit.py",
    ),
    Mutant(
        "looking everything up once the tables did not agree",
        "subscriptions/audit.py",
        "            self._of_sessions.clear()\n",
        "",
        "subscriptions/test_audit.py",
    ),
    Mutant(
        "asking where each binding stands that is not as far as its group",
        "messaging/check.py",
        "    if apart:\n        await node.catch_up.find_behind(apart)\n",
        "",
        "invariants/test_bindings_simulated.py",
    ),
    Mutant(
        "groups against the heads that the database has",
        "messaging/catch_up.py",
        "return {channel for channel in now if known[channel] != now[channel]}",
        "return set()",
        "invariants/test_observation_simulated.py",
    ),
    Mutant(
        "a sweep for who asks after one has begun",
        "messaging/catch_up.py",
        "if self._sweeps_done <= asked:",
        "if self._sweeps_done < asked:",
        "scenarios/test_sweep.py",
    ),
    Mutant(
        "another sweep where the one that was waited for has failed",
        "messaging/catch_up.py",
        "        number = self._sweeps_begun\n",
        "        number = self._sweeps_done = self._sweeps_begun\n",
        "scenarios/test_sweep.py",
    ),
    Mutant(
        "a look under way that goes as far as the sweep has found",
        "messaging/catch_up.py",
        "                self._look_up_to(channel, still[channel])\n",
        "                pass\n",
        "scenarios/test_sweep.py",
    ),
    Mutant(
        "a connect takes no binding that is newer",
        "messaging/hub.py",
        "if not all(map(is_, held, grants)):",
        "if False:",
        "messaging/test_hub.py",
    ),
    Mutant(
        "a connect takes no position that is known",
        "messaging/hub.py",
        "        session.heard.update(known)\n",
        "",
        "messaging/test_hub.py",
    ),
    Mutant(
        "the newest version that anybody came with",
        "messaging/hub.py",
        "            group.newest = max(group.newest, version)\n",
        "",
        "messaging/test_hub.py",
    ),
    Mutant(
        "giving up who has not answered the ping before",
        "messaging/sockets.py",
        "            self.keepalive_timeout()\n            return\n",
        "            return\n",
        "messaging/test_sockets.py",
    ),
    Mutant(
        "a peer that says something is there",
        "messaging/sockets.py",
        "        self._silent = False\n",
        "",
        "messaging/test_sockets.py",
    ),
    Mutant(
        "names in Redis of the groups that are asked for",
        "messaging/redis_layer.py",
        "        if groups != self._asked:\n",
        "        if not self._asked:\n",
        "messaging/test_redis_layer.py",
        network=True,
    ),
    Mutant(
        "letting be whom the list of sessions has lost",
        "messaging/check.py",
        "            if stray.id not in node.members:",
        "            if True:",
        "scenarios/test_findings.py",
    ),
    Mutant(
        "the position of a session that its group has lost",
        "messaging/catch_up.py",
        "marks.setdefault((channel, session.id), (0, session.heard.get(channel, 0)))",
        "pass",
        "scenarios/test_findings.py",
    ),
    Mutant(
        "the rows whose closing is cancelled",
        "messaging/departures.py",
        "self._left = left | self._left  #",
        "pass  #",
        "messaging/test_departures.py",
    ),
    Mutant(
        "listening to others beside the steps",
        "messaging/tick.py",
        "self._listening = node.errand(self._listen_to_peers())",
        "await self._listen_to_peers()",
        "messaging/test_tick.py",
    ),
    Mutant(
        "the count of ticks between two looks after the sessions",
        "messaging/tick.py",
        "        if self._attending.is_over():\n",
        "        if True:\n",
        "messaging/test_tick.py",
    ),
    Mutant(
        "the refusal to make a group by sending to it",
        "messaging/permissions.py",
        "may = standing.exists or makes_channel(key, sender)",
        "may = True",
        "messaging/test_permissions.py",
    ),
    Mutant(
        "the layer's share of the check",
        "messaging/tick.py",
        "check.check_memory(self.node) + check.check_layer(self.node)",
        "check.check_memory(self.node)",
        "scenarios/test_deaf_node.py",
    ),
    Mutant(
        "the time of the last complete check",
        "messaging/tick.py",
        "await self.node.database.write(registry.mark_checked, self.node.id, seconds)",
        "pass",
        "messaging/test_tick.py scenarios/test_findings.py scenarios/test_node_life.py",
    ),
    Mutant(
        "a tick that comes in time after slow steps",
        "messaging/tick.py",
        "max(self._period - took, ",
        "max(self._period, ",
        "messaging/test_tick.py",
    ),
    Mutant(
        "the beat beside the steps",
        "messaging/tick.py",
        'while "beat" in self.node.conf.steps:',
        "while False:",
        "messaging/test_tick.py",
    ),
    Mutant(
        "readiness that a deaf node denies",
        "messaging/node.py",
        "if self.probe.missed >= 2 * self.conf.probe_misses:",
        "if False:",
        "scenarios/test_node_life.py scenarios/test_broken_layer.py messaging",
    ),
    Mutant(
        "a difference that came meanwhile is no fault",
        "messaging/check.py",
        " and had.get(place) == have.get(place)",
        "",
        "invariants/test_bindings_simulated.py",
    ),
    Mutant(
        "a membership that changed meanwhile is no fault",
        "messaging/check.py",
        " if expected.get(_place(each)) == now.get(_place(each))",
        "",
        "invariants/test_bindings_simulated.py",
    ),
    Mutant(
        "a look before a stray counts",
        "messaging/check.py",
        "await asyncio.gather(*(node.catch_up.looked(channel) for channel in strays if channel))",
        "del strays",
        "invariants/test_bindings_simulated.py",
    ),
    # --- the layer ---
    Mutant(
        "the rejoin, in memory",
        "messaging/layer.py",
        "await self._for_each(groups, self._layer.group_discard, self._layer.group_add)",
        "await self._for_each(groups, self._layer.group_add)",
        "messaging/test_layer.py scenarios/test_lost_binding.py",
    ),
    Mutant(
        "the rejoin, over Redis",
        "messaging/layer.py",
        "            await self.join(groups)\n        else:\n",
        "            return\n        else:\n",
        "messaging/test_redis_layer.py",
    ),
    Mutant(
        "the look after a reconnect",
        "messaging/node.py",
        "            try:\n                await self.look_at_everything()\n            except",
        "            try:\n                pass\n            except",
        "messaging/test_redis_layer.py scenarios/test_broken_layer.py",
    ),
    Mutant(
        "the comparison with the server's count of subscriptions",
        "messaging/redis_hearing.py",
        "if found and int(found[1]) != len(self.confirmed):",
        "if False:",
        "messaging/test_redis_layer.py scenarios/test_broken_layer.py",
    ),
    Mutant(
        "the end of hearing, cancelled as the connection fails",
        "messaging/redis_layer.py",
        "                if self._receive_task is not task:\n",
        "                if False:\n",
        "messaging/test_redis_layer.py",
    ),
    Mutant(
        "the wait for Redis to confirm",
        "messaging/redis_layer.py",
        "            await shard.confirm(part)\n",
        "            pass\n",
        "messaging/test_redis_layer.py",
    ),
    Mutant(
        "the time that a publish may take",
        "messaging/layer.py",
        "(conf().layer_seconds):\n                    await self._publish(batch)",
        "(None):\n                    await self._publish(batch)",
        "messaging/test_layer.py messaging/test_redis_layer.py scenarios/test_broken_layer.py",
    ),
    Mutant(
        "the notice of a new connection",
        "messaging/redis_layer.py",
        "if again and self.channel_layer.on_reconnect:",
        "if False:",
        "messaging/test_redis_layer.py",
    ),
    Mutant(
        "the patience with a connection that is silent",
        "messaging/redis_layer.py",
        "async with asyncio.timeout(ANSWER_SECONDS):",
        "async with asyncio.timeout(None):",
        "messaging/test_redis_layer.py",
    ),
    Mutant(
        "the bound of what waits to be published",
        "messaging/layer.py",
        "asyncio.Queue(conf().publish_queue)",
        "asyncio.Queue()",
        "messaging/test_layer.py messaging/test_redis_layer.py",
    ),
    Mutant(
        "the inbox that outlives a cancelled reader",
        "messaging/layer.py",
        "if self._receiver is None or self._receiver.cancelled():",
        "if True:",
        "messaging/test_layer.py messaging/test_redis_layer.py",
    ),
    # --- sending ---
    Mutant(
        "the sender's re-judgement",
        "messaging/appender.py",
        "return version == row.version and time.monotonic() < until",
        "return version >= 0 and time.monotonic() < until",
        "messaging/test_log.py",
    ),
    Mutant(
        "the skipping of rows that others hold",
        "messaging/message_table.py",
        "{'SKIP LOCKED' if wait is None else ''}",
        "",
        "messaging/test_log_lanes.py",
        network=True,
    ),
    Mutant(
        "the slow lane's turn from channel to channel",
        "messaging/log.py",
        "wait = max(SHORTEST_WAIT, SLOW_SECONDS / len(self._held))",
        "wait = 60.0",
        "messaging/test_log_lanes.py",
        network=True,
    ),
    Mutant(
        "the order of messages through both lanes",
        "messaging/log.py",
        "held = self._held.get(draft.key)",
        "held = None",
        "messaging/test_log_lanes.py",
        network=True,
    ),
    Mutant(
        "the search for what a lost commit may have stored",
        "messaging/appender.py",
        "batch = _begin(drafts, doubtful, wait)",
        "batch = _begin(drafts, (), wait)",
        "messaging/test_log_lanes.py",
        network=True,
    ),
    Mutant(
        "the second try of a batch",
        "messaging/appender.py",
        "if attempt == ATTEMPTS or not is_transient(error):",
        "if True:",
        "messaging/test_log_lanes.py",
        network=True,
    ),
    Mutant(
        "the order of a batch that is split",
        "messaging/appender.py",
        "rest = [each for each in second if each[0].key not in held]",
        "rest, held = second, set()",
        "messaging/test_log_lanes.py",
        network=True,
    ),
    Mutant(
        "the share of one held channel",
        "messaging/log.py",
        "(held is not None and self._is_full(held))",
        "False",
        "messaging/test_log_lanes.py",
        network=True,
    ),
    # --- the ledger ---
    Mutant(
        "the marks of another cluster",
        "subscriptions/marks.py",
        '" AND change_mark < pg_snapshot_xmax(pg_current_snapshot())::text::bigint"',
        '""',
        "subscriptions/test_marks.py",
        network=True,
    ),
    Mutant(
        "the refusal of TRUNCATE",
        "subscriptions/triggers/postgresql.py",
        'return f"BEFORE TRUNCATE ON {table} FOR EACH STATEMENT {_refuse(TRUNCATED)}"',
        'return f"BEFORE TRUNCATE ON {table} FOR EACH STATEMENT WHEN (false) {_refuse(TRUNCATED)}"',
        "subscriptions/test_postgresql.py",
        network=True,
    ),
    Mutant(
        "autovacuum gives way to triggers",
        "subscriptions/triggers/install.py",
        "TRY_MS + (_vacuum_gives_way(connection) if wait_ms == TRY_MS else 0)",
        "TRY_MS",
        "subscriptions/test_postgresql.py",
        network=True,
    ),
    # --- sessions ---
    Mutant(
        "the order of connects and new tokens",
        "messaging/auth.py",
        "        registry.hold_device(*arrivals[0].device)\n",
        "        pass\n",
        "messaging/test_registry.py messaging/test_auth.py",
        network=True,
    ),
    Mutant(
        "the devices that many who connect hold",
        "messaging/auth.py",
        "got = registry.try_devices([each.device for each in first])",
        "got = {each.device for each in first}",
        "messaging/test_auth.py",
        network=True,
    ),
    Mutant(
        "the turn of the second who comes by a device",
        "messaging/auth.py",
        "    first = {each.session.uid: each for each in reversed(arrivals)}.values()\n",
        "    first = arrivals\n",
        "messaging/test_auth.py webhooks/test_announcing.py",
    ),
    Mutant(
        "the position of who came back while connecting",
        "messaging/hub.py",
        "        if binding.version < session.missed.get(group.channel, 0):\n",
        "        if False:\n",
        "messaging/test_hub.py",
    ),
    Mutant(
        "the joins that a connect was too early for",
        "messaging/hub.py",
        "(binding := self._held(session, channel)) is None or binding.version < version",
        "self._held(session, channel) is None",
        "messaging/test_hub.py",
    ),
    Mutant(
        "what the check lets be of those who come and leave",
        "messaging/check.py",
        "    moving |= node.moving\n",
        "    moving.clear()\n",
        "scenarios/test_connect.py",
    ),
    Mutant(
        "the row of another try",
        "messaging/registry.py",
        "    rows = [_row(each) for each in sessions]\n",
        "    rows = sessions\n",
        "messaging/test_registry.py",
    ),
    Mutant(
        "the others of a batch in which one is at fault",
        "messaging/batching.py",
        "divided = len(asked) > 1 and not _is_out_of_reach(error)",
        "divided = False",
        "messaging/test_batching.py scenarios/test_connect.py",
    ),
    Mutant(
        "the kick of who was displaced while the node was taken for dead",
        "messaging/registry.py",
        "        _kick_displaced(page)\n",
        "        pass\n",
        "messaging/test_registry.py scenarios/test_node_life.py",
    ),
    # --- draining ---
    Mutant(
        "the spread of those who are asked to come back",
        "messaging/node.py",
        "await asyncio.sleep(max(0.0, due - self.loop.time()))",
        "pass",
        "scenarios/test_node_life.py scenarios/test_rolling_restart.py",
    ),
    Mutant(
        "the appending of what waits when a node stops",
        "messaging/node.py",
        "await self.log.stop(STEP_SECONDS)",
        "pass",
        "scenarios/test_node_life.py scenarios/test_rolling_restart.py",
    ),
    Mutant(
        "the cut of readers that stalled",
        "messaging/serving.py",
        "if isinstance(protocol, Stalling) and protocol.stalled:",
        "if False:",
        "scenarios/test_node_life.py scenarios/test_workers.py",
    ),
    Mutant(
        "the cut of peers that ping and do not read",
        "messaging/sockets.py",
        "if self.transport.get_write_buffer_size() > UNREAD_PONGS:",
        "if False:",
        "messaging/test_serve.py",
    ),
    Mutant(
        "the pause before a worker is started again",
        "messaging/workers.py",
        "pause = min(LONGEST_PAUSE, 2.0**self._failures)",
        "pause = 0.0",
        "scenarios/test_workers.py",
    ),
    Mutant(
        "the refusal of workers without Redis",
        "messaging/management/commands/serve.py",
        "if workers > 1 and in_memory():",
        "if False:",
        "messaging/test_serve.py scenarios/test_workers.py",
    ),
    Mutant(
        "the bound of refused sends",
        "messaging/refusals.py",
        "return of_one or self._written >= conf().refusals_a_minute",
        "return of_one",
        "messaging/test_refusals.py",
    ),
    # --- explaining ---
    Mutant(
        "the worst session's say",
        "subscriptions/explain/rules.py",
        "worst = min(sessions, key",
        "worst = max(sessions, key",
        "subscriptions/test_explain.py subscriptions/test_explain_command.py",
    ),
    # --- guarantees ---
    Mutant(
        "the fence of what is not stored",
        "messaging/hub.py",
        "if not binding.judges(message.version):",
        "if False:",
        "messaging/test_hub.py",
    ),
    Mutant(
        "withholding while the database fails",
        "messaging/hub.py",
        "if version > binding.version:",
        "if False:",
        "invariants/test_safety_simulated.py",
    ),
    Mutant(
        "the search for foreign memberships",
        "subscriptions/audit.py",
        "if uid in uids and (uid, channel) not in expected:",
        "if False:",
        "invariants/test_safety_simulated.py",
    ),
    Mutant(
        "the leave of who has heard the last that is theirs",
        "messaging/hub.py",
        "        if not is_member:\n"
        "            self._release(session, group)\n"
        "        return outcome",
        "        return outcome",
        "messaging/test_hub.py",
    ),
    Mutant(
        "the sweep of heads",
        "messaging/tick.py",
        "repaired = await self.node.catch_up.sweep_heads()",
        "repaired = []",
        "invariants/test_liveness_simulated.py",
    ),
    Mutant(
        "the taking back of what is from the future",
        "messaging/catch_up.py",
        "self.hub.take_back(live, channel, page.version, top, marks)",
        "pass",
        "invariants/test_bindings_simulated.py",
    ),
    Mutant(
        "the version that a binding keeps",
        "messaging/hub.py",
        "if held is None or held.version <= binding.version:",
        "if True:",
        "invariants/test_bindings_simulated.py",
    ),
    Mutant(
        "the newer of what is read and held",
        "messaging/hub.py",
        "binding = max(granted, self._held(session, channel) or granted, key=VERSION)",
        "binding = granted",
        "invariants/test_bindings_simulated.py",
    ),
    Mutant(
        "the refusal of old pages",
        "subscriptions/bindings.py",
        "if not page.since <= self.version < page.version:",
        "if False:",
        "invariants/test_bindings_simulated.py",
    ),
    Mutant(
        "the repair that asks no questions",
        "messaging/membership_news.py",
        "rebind({channel: uids for channel, uids in local.items() if uids})",
        "rebind({})",
        "invariants/test_bindings_simulated.py",
    ),
    Mutant(
        "heads of the database",
        "messaging/catch_up.py",
        "self.behind[channel] = head",
        "self.behind[channel] = self.hub.groups[channel].head",
        "invariants/test_observation_simulated.py",
    ),
    Mutant(
        "one record for one disagreement",
        "messaging/tick.py",
        "await self._mend(audit.distinct(found))",
        "await self._mend(found)",
        "invariants/test_observation_simulated.py",
    ),
    Mutant(
        "a connect that was given up",
        "messaging/auth.py",
        " and each.is_there():",
        ":",
        "messaging/test_auth.py",
    ),
    Mutant(
        "what was mended before time was up",
        "messaging/check.py",
        "for part in _parts(found):",
        "for part in [list(found)]:",
        "scenarios/test_much_lost.py",
    ),
    Mutant(
        "one record of a whole loss",
        "subscriptions/audit.py",
        "if len(alike) <= MANY:",
        "if True:",
        "invariants/test_on_a_server.py",
    ),
    Mutant(
        "the age of a check in the health",
        "subscriptions/api/health.py",
        "age is None or age > bound for age in ages",
        "age is None for age in ages",
        "invariants/test_on_a_server.py",
    ),
    Mutant(
        "the listening to peers",
        "messaging/tick.py",
        "self._listening = node.errand(self._listen_to_peers())",
        "pass",
        "scenarios/test_peers.py",
    ),
    Mutant(
        "the way of a thread to the node's loop",
        "messaging/node.py",
        "self.loop.call_soon_threadsafe(self.layer.publish, group, event)",
        "self.layer.publish(group, event)",
        "faults/test_impossible.py",
    ),
    # --- webhooks ---
    Mutant(
        "the webhook's row in the transaction of its message",
        "messaging/appender.py",
        "            announcing.announce_messages(",
        "        announcing.announce_messages(",
        "webhooks/test_announcing.py",
    ),
    Mutant(
        "the order of a webhook's endpoint while its first event fails",
        "webhooks/outbox.py",
        'filter(WAITING, endpoint=endpoint).order_by("pk")',
        'filter(WAITING, endpoint=endpoint).order_by("attempts", "pk")',
        "webhooks/test_outbox.py webhooks/test_delivery.py",
    ),
    Mutant(
        "the lease of a webhook's endpoint",
        "webhooks/lease.py",
        "free = Q(owner=self._me) | Q(until__lte=Now())",
        "free = Q()",
        "webhooks/test_delivery.py",
    ),
    Mutant(
        "the time that a webhook's lease outlasts a request",
        "webhooks/lease.py",
        "until = ahead(conf().timeout_seconds + MARGIN)",
        "until = ahead(MARGIN)",
        "webhooks/test_delivery.py",
    ),
    Mutant(
        "the mark of a webhook after its answer, not before",
        "webhooks/deliverer.py",
        "        try:\n            self._runner.run(self._send(request))",
        "        outbox.mark_delivered(batch)\n"
        "        try:\n            self._runner.run(self._send(request))",
        "webhooks/test_delivery.py",
    ),
    Mutant(
        "the id and the time in a webhook's signature",
        "webhooks/posting.py",
        'signed = f"{request.id}.{timestamp}.".encode() + request.body',
        "signed = request.body",
        "webhooks/test_delivery.py",
    ),
    Mutant(
        "the refusal of a webhook's private addresses",
        "webhooks/posting.py",
        "[each for each in found if is_allowed(each, conf().allow_private)]",
        "found",
        "webhooks/test_delivery.py",
    ),
    Mutant(
        "the connection of a webhook to the very address that was judged",
        "webhooks/posting.py",
        "there = url.copy_with(host=address)",
        "there = url",
        "webhooks/test_delivery.py",
    ),
    Mutant(
        "the refusal of a webhook's redirects",
        "webhooks/posting.py",
        "            trust_env=False,\n            verify=authorities,",
        "            trust_env=False,\n            follow_redirects=True,\n"
        "            verify=authorities,",
        "webhooks/test_delivery.py",
    ),
    Mutant(
        "the end of a webhook that nobody takes",
        "webhooks/outbox.py",
        "is_dead = row.attempts + 1 >= conf().attempts",
        "is_dead = False",
        "webhooks/test_outbox.py webhooks/test_delivery.py",
    ),
    Mutant(
        "the keeping of webhooks that wait, however old",
        "webhooks/outbox.py",
        "everything.filter(WAITING, created_at__lt=dead).exclude(endpoint__in=configured)",
        "everything.filter(WAITING, created_at__lt=dead)",
        "webhooks/test_outbox.py",
    ),
    # --- the HTTP API ---
    Mutant(
        "the token of the HTTP API",
        "subscriptions/api/authentication.py",
        "if not hmac.compare_digest(given, expected):",
        "if False:",
        "messaging/api/test_authentication.py messaging/api",
    ),
    Mutant(
        "the deny list of a channel",
        "messaging/message_table.py",
        "AND r.uid = sender AND NOT r.allow",
        "AND r.uid = sender AND NOT r.allow AND 1 = 0",
        "messaging/test_log.py messaging/api/test_lists.py",
    ),
    Mutant(
        "the allow list of a channel",
        "messaging/permissions.py",
        "if standing.has_allow_list and not standing.allowed:",
        "if False:",
        "messaging/test_permissions.py",
    ),
    Mutant(
        "the order of the checks: the deny list before membership",
        "messaging/permissions.py",
        "    if standing.denied:\n        return Reason.IN_BLACKLIST\n"
        "    if not standing.member:\n        return Reason.SUBSCRIBER_NOT_EXIST\n",
        "    if not standing.member:\n        return Reason.SUBSCRIBER_NOT_EXIST\n"
        "    if standing.denied:\n        return Reason.IN_BLACKLIST\n",
        "messaging/test_permissions.py",
    ),
    Mutant(
        "the refusal of events under a key that has ended",
        "messaging/events.py",
        "is_over = finish is not None or row.status != MessageEvent.OPEN",
        "is_over = False",
        "messaging/test_events.py messaging/api/test_events.py",
    ),
    Mutant(
        "the refusal of new keys after a message's end",
        "messaging/events.py",
        "    if row is None:\n        return finish\n",
        "    if row is None:\n        return None\n",
        "messaging/test_events.py messaging/api/test_events.py",
    ),
    Mutant(
        "the lock of a message that is written bit by bit",
        "messaging/events.py",
        "message = find_anchor(anchor, lock=True)",
        "message = find_anchor(anchor)",
        "messaging/test_events.py",
        network=True,
    ),
    Mutant(
        "the way of a reader's positions, which is forward",
        "messaging/conversations.py",
        "ahead.update(**{name: Greatest(F(name), target)})",
        "rows.update(**{name: Greatest(target, 0)})",
        "messaging/api/test_conversations.py",
        network=True,
    ),
    Mutant(
        "the leaving out of commands where messages are read",
        "messaging/api/history.py",
        "Message.objects.filter(channel=channel, sync_once=False)",
        "Message.objects.filter(channel=channel)",
        "messaging/api/test_reading.py messaging/api/test_messages.py",
    ),
    Mutant(
        "the membership of who reads messages",
        "messaging/api/history.py",
        'filter(is_channel(key, "channel__"), uid=uid)',
        'filter(is_channel(key, "channel__"))',
        "messaging/api/test_messages.py messaging/api/test_reading.py",
    ),
    Mutant(
        "the join below which nobody gets commands",
        "messaging/commands.py",
        " AND x.seq > m.joined_seq\n        WHERE m.uid",
        "\n        WHERE m.uid",
        "messaging/api/test_commands.py",
    ),
    Mutant(
        "the refusal of temporary subscribers",
        "messaging/api/serializers.py",
        "        if temporary:\n",
        "        if False:\n",
        "messaging/api/test_channels.py",
    ),
    # --- the binary protocol ---
    Mutant(
        "the binary check of a send's msgKey",
        "messaging/protocol/binary.py",
        "if not hmac.compare_digest(self.cipher.sign(signed), key):",
        "if False:",
        "messaging/protocol/test_binary.py scenarios/test_binary.py",
    ),
    Mutant(
        "the binary client's own key",
        "messaging/consumers.py",
        '        except ValueError:\n            extra = {"why": "client key"',
        '        except KeyError:\n            extra = {"why": "client key"',
        "scenarios/test_binary.py",
    ),
    Mutant(
        "binary events only for those that can bear them",
        "messaging/protocol/binary.py",
        '        if self.version < EVENT_SINCE:\n            return b""',
        '        if False:\n            return b""',
        "messaging/protocol/test_binary.py scenarios/test_binary.py",
    ),
    Mutant(
        "binary stream bits only for those that read them alike",
        "messaging/protocol/binary.py",
        "            setting &= ~STREAM\n",
        "            pass\n",
        "messaging/protocol/test_binary.py scenarios/test_binary.py",
    ),
    Mutant(
        "the bound of a binary packet before its bytes come",
        "messaging/protocol/binary.py",
        "            if length > self.limit:\n",
        "            if False:\n",
        "messaging/protocol/test_binary.py",
    ),
    Mutant(
        "the turn of binary pieces over TCP",
        "messaging/tcp.py",
        "(not self._pending and self._taken is not None and self._taken(data))",
        "(self._taken is not None and self._taken(data))",
        "messaging/test_tcp.py",
    ),
    Mutant(
        "the turn of a send behind one that waits for room",
        "messaging/consumers.py",
        "free = self._listens and self",
        "free = self",
        "scenarios/test_sends.py",
    ),
    Mutant(
        "the bound of sends that are taken as they come",
        "messaging/consumers.py",
        "self._listens and self.in_flight.has_room and",
        "self._listens and",
        "scenarios/test_sends.py",
    ),
    Mutant(
        "room for the answers of sends that are taken as they come",
        "messaging/consumers.py",
        "self.in_flight.has_room and self.outbox.has_room\n",
        "self.in_flight.has_room\n",
        "scenarios/test_sends.py",
    ),
    Mutant(
        "a reader that waits for no answer once its session is sent away",
        "messaging/consumers.py",
        "        self.in_flight.end()",
        "        pass",
        "scenarios/test_sends.py",
    ),
    Mutant(
        "the bound of what is read ahead over TCP",
        "messaging/tcp.py",
        "            self.transport.pause_reading()\n",
        "            pass\n",
        "messaging/test_tcp.py",
    ),
    Mutant(
        "the close over TCP that resets nothing",
        "messaging/tcp.py",
        "if self.transport.can_write_eof() and",
        "if False and",
        "messaging/test_tcp.py",
    ),
    # --- commands that devices take ---
    Mutant(
        "commands before one that a device takes",
        "messaging/commands.py",
        "             AND x.sender <> s.uid\n",
        "             AND 1 = 0\n",
        "messaging/api/test_commands.py",
    ),
    Mutant(
        "commands that only a master device takes",
        "messaging/consumers.py",
        "        if admission.level == registry.MASTER:\n",
        "        if True:\n",
        "scenarios/test_commands.py",
    ),
]


def main(words: list[str]) -> int:
    """Try every mutant, or those whose names have one of the words; 1 when one was not noticed."""
    chosen = [each for each in MUTANTS if not words or any(word in each.name for word in words)]
    print(f"{len(chosen)} mutants, each a run of tests until something fails.\n")
    noticed = [try_mutant(number, mutant) for number, mutant in enumerate(chosen, 1)]
    print(f"\n{sum(noticed)} of {len(noticed)} mutants noticed.")
    return 0 if all(noticed) else 1


def try_mutant(number: int, mutant: Mutant) -> bool:
    """Whether the tests notice it; prints which did."""
    print(f"{number}. without {mutant.name} … ", end="", flush=True)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="wukongim-mutant-") as folder:
        copy_tree(Path(folder))
        apply(mutant, Path(folder))
        failed = failing_test(mutant, Path(folder))
    seconds = time.monotonic() - began
    if failed is None:
        print(f"NOT NOTICED ({seconds:.0f} s)")
        return False
    if not passes(failed, mutant):
        print(f"not told: {failed} fails without the mutant, too")
        return False
    print(f"noticed by {failed} ({seconds:.0f} s)")
    return True


def copy_tree(folder: Path) -> None:
    """The files of the tree with their times, so that nothing is installed again."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split("\n")  # fmt: skip
    for name in filter(None, listed):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / ".venv").symlink_to(ROOT / ".venv")


def apply(mutant: Mutant, folder: Path) -> None:
    """Make the edit; ends the script where the code has moved on from what is written here."""
    file = folder / mutant.file
    text = file.read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        sys.exit(f"\n{mutant.file} does not have exactly once: {mutant.old}")
    file.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")


def failing_test(mutant: Mutant, folder: Path) -> str | None:
    """The first test that fails in `folder`, or None when all pass."""
    wanted = [f"tests/{name}" for name in mutant.tests.split()]
    run = pytest(folder, mutant, "-n", "2", "-x", *wanted)
    if run.returncode == 0:
        return None
    found = re.search(r"^(?:FAILED|ERROR) (\S.*?)(?: - .*)?$", run.stdout, re.MULTILINE)
    if found is None:
        sys.exit(f"\nthe tests failed without a failing test:\n{run.stdout[-2000:]}{run.stderr}")
    return found[1]


def passes(test: str, mutant: Mutant) -> bool:
    """Whether a test passes in the tree as it is."""
    return pytest(ROOT, mutant, test).returncode == 0


def pytest(folder: Path, mutant: Mutant, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A run of tests, on what the mutant is about."""
    return subprocess.run(
        [folder / ".venv/bin/python", "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments],
        cwd=folder, env={**os.environ, "TESTS_ON": "network" if mutant.network else ""},
        capture_output=True, text=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import ManagementUtility

from tests.support import services
from tests.support.server import ROOT
from wukongim import checks, environment


def test_runserver_speaks_websocket_and_no_other_command_loads_its_server():
    assert ManagementUtility().fetch_command("runserver").server_cls.__module__ == "daphne.server"
    load = "import django, sys; django.setup(); sys.exit('daphne' in sys.modules)"
    subprocess.run([sys.executable, "-c", load], cwd=ROOT, check=True)


def test_unknown_variables_names_only_misspelt_ones_of_our_prefix():
    environ = {"WUKONGIM_DEBUG": "1", "WUKONGIM_DEBUGG": "1", "PATH": "/bin"}
    assert environment.unknown_variables(environ) == ["WUKONGIM_DEBUGG"]


def test_check_environment_reports_a_misspelt_name_and_its_neighbour(monkeypatch):
    monkeypatch.setenv("WUKONGIM_REDISURL", "redis://x")
    [error] = checks.check_environment(None)
    assert error.id == "wukongim.E001"
    assert error.is_serious()
    assert "WUKONGIM_REDIS_URL" in error.hint
    assert "docs/" in error.hint


def test_check_environment_is_clean_by_default():
    assert checks.check_environment(None) == []


def test_check_environment_runs_with_manage_check():
    from django.core.checks.registry import registry

    assert checks.check_environment in registry.get_checks()


@pytest.mark.parametrize("blank", ["", "  "])
def test_blank_variables_count_as_unset(monkeypatch, blank, tmp_path):
    for name in ("DEBUG", "ALLOWED_HOSTS", "MESSAGING", "DATABASE_URL"):
        monkeypatch.setenv(f"WUKONGIM_{name}", blank)
    assert environment.flag("DEBUG") is False
    assert environment.words("ALLOWED_HOSTS", ["localhost"]) == ["localhost"]
    assert environment.table("MESSAGING") == {}
    assert environment.database(tmp_path)["NAME"] == tmp_path / "db.sqlite3"


def test_words_are_separated_by_commas(monkeypatch):
    monkeypatch.setenv("WUKONGIM_ALLOWED_HOSTS", "a.example, b.example,")
    assert environment.words("ALLOWED_HOSTS", []) == ["a.example", "b.example"]


def test_table_reads_a_json_object(monkeypatch):
    monkeypatch.setenv("WUKONGIM_MESSAGING", '{"TICK": 2}')
    assert environment.table("MESSAGING") == {"TICK": 2}


@pytest.mark.parametrize("value", ["[1]", "3", "{broken"])
def test_table_refuses_what_is_no_json_object(monkeypatch, value):
    monkeypatch.setenv("WUKONGIM_MESSAGING", value)
    with pytest.raises(ImproperlyConfigured, match="WUKONGIM_MESSAGING"):
        environment.table("MESSAGING")


def test_flag_refuses_what_is_neither_yes_nor_no(monkeypatch):
    monkeypatch.setenv("WUKONGIM_DEBUG", "perhaps")
    with pytest.raises(ImproperlyConfigured, match="WUKONGIM_DEBUG"):
        environment.flag("DEBUG")


def test_secret_prefers_the_variable_to_the_file(monkeypatch, tmp_path):
    (tmp_path / "api_token").write_text("from the file\n")
    monkeypatch.setenv("WUKONGIM_API_TOKEN", "from the variable")
    assert environment.secret("API_TOKEN", tmp_path) == "from the variable"
    monkeypatch.delenv("WUKONGIM_API_TOKEN")
    assert environment.secret("API_TOKEN", tmp_path) == "from the file"


def test_secret_is_empty_without_variable_and_file(monkeypatch, tmp_path):
    monkeypatch.delenv("WUKONGIM_SECRET_KEY")
    assert environment.secret("SECRET_KEY", tmp_path) == ""


def test_database_is_a_durable_sqlite_file_in_a_private_folder(tmp_path):
    folder = tmp_path / "data"
    entry = environment.database(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert entry["OPTIONS"]["transaction_mode"] == "IMMEDIATE"
    assert "synchronous=FULL" in entry["OPTIONS"]["init_command"]
    assert entry["CONN_MAX_AGE"] is None


def test_database_url_names_another_sqlite_file_with_the_same_options(monkeypatch, tmp_path):
    monkeypatch.setenv("WUKONGIM_DATABASE_URL", f"sqlite:///{tmp_path}/other.sqlite3")
    entry = environment.database(tmp_path)
    assert Path(entry["NAME"]) == tmp_path / "other.sqlite3"
    assert entry["OPTIONS"] == environment.SQLITE_OPTIONS


def test_database_url_of_postgresql_gets_a_pool_whose_connections_are_checked(
    monkeypatch, tmp_path
):
    monkeypatch.setenv("WUKONGIM_DATABASE_URL", "postgresql://u:p@db.example/chat")
    monkeypatch.setenv("WUKONGIM_DATABASE_POOL", "10")
    entry = environment.database(tmp_path)
    assert entry["ENGINE"] == "django.db.backends.postgresql"
    assert (entry["CONN_MAX_AGE"], entry["CONN_HEALTH_CHECKS"]) == (0, True)
    assert entry["OPTIONS"]["pool"] == {"min_size": 2, "max_size": 2, "timeout": 10}


def test_session_of_ours_is_ended_by_postgresql_when_its_process_has_gone(monkeypatch):
    """What the URL brings comes on top, and counts where it is about the same."""
    theirs = "?options=-c%20search_path%3Dchat%20-c%20idle_in_transaction_session_timeout%3D7s"
    asked = {}
    for name, query in (("ours", ""), ("theirs", theirs)):
        monkeypatch.setenv("WUKONGIM_DATABASE_URL", f"{services.postgres().url}/postgres{query}")
        entry = environment.database(Path())
        given = {key: entry["OPTIONS"][key] for key in environment.POSTGRES_OPTIONS}
        with psycopg.connect(f"{services.postgres().url}/postgres", **given) as session:
            asked[name] = {
                parameter: session.execute(f"SHOW {parameter}").fetchone()[0]
                for parameter in (*environment.POSTGRES_SESSION, "search_path")
            }
    assert asked["ours"] == {
        "idle_in_transaction_session_timeout": "5s",
        "tcp_keepalives_idle": "10",
        "tcp_keepalives_interval": "5",
        "tcp_keepalives_count": "2",
        "tcp_user_timeout": "20000",
        "client_connection_check_interval": "5s",
        "search_path": '"$user", public',
    }
    assert asked["theirs"] == {
        **asked["ours"], "idle_in_transaction_session_timeout": "7s", "search_path": "chat",
    }  # fmt: skip


def test_database_pool_that_would_starve_the_node_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("WUKONGIM_DATABASE_URL", "postgresql://u:p@db.example/chat")
    monkeypatch.setenv("WUKONGIM_DATABASE_POOL", "9")
    with pytest.raises(ImproperlyConfigured) as caught:
        environment.database(tmp_path)
    assert str(caught.value) == (
        "WUKONGIM_DATABASE_POOL must be at least 10, not 9: the node of a process takes 8 "
        "connections, and requests need some, too."
    )


@pytest.mark.parametrize("size", ["0", "-1", "many"])
def test_database_pool_must_be_a_number_above_nothing(monkeypatch, tmp_path, size):
    monkeypatch.setenv("WUKONGIM_DATABASE_URL", "postgresql://u:p@db.example/chat")
    monkeypatch.setenv("WUKONGIM_DATABASE_POOL", size)
    with pytest.raises(ImproperlyConfigured, match="WUKONGIM_DATABASE_POOL"):
        environment.database(tmp_path)


def test_database_url_of_a_database_that_is_not_served_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("WUKONGIM_DATABASE_URL", "mysql://u:hidden@db.example/chat")
    with pytest.raises(ImproperlyConfigured, match="postgresql://") as caught:
        environment.database(tmp_path)
    assert "hidden" not in str(caught.value)


def test_database_url_of_an_unknown_kind_is_refused_without_its_password(monkeypatch, tmp_path):
    monkeypatch.setenv("WUKONGIM_DATABASE_URL", "nosuch://u:hidden@db.example/chat")
    with pytest.raises(ImproperlyConfigured, match="WUKONGIM_DATABASE_URL") as caught:
        environment.database(tmp_path)
    assert "hidden" not in str(caught.value)


def test_channel_layers_are_in_memory_unless_redis_is_named():
    assert environment.channel_layers("")["default"]["BACKEND"] == "messaging.layer.MemoryLayer"
    redis = environment.channel_layers("redis://127.0.0.1/0", "ours")["default"]
    assert redis["BACKEND"] == "messaging.redis_layer.RedisLayer"
    assert redis["CONFIG"] == {"hosts": [{"address": "redis://127.0.0.1/0"}], "prefix": "ours"}

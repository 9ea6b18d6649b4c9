import os
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import CommandError

from wukongim.management.commands import bootstrap

pytestmark = pytest.mark.django_db


@pytest.fixture
def folder(settings, monkeypatch, tmp_path):
    """The data folder of an installation that has nothing yet."""
    settings.WUKONGIM_DATA_DIR = tmp_path / "data"
    # Not through `settings`: Django refuses to give back an empty key, which the undoing asks for.
    monkeypatch.setattr(bootstrap, "_setting", lambda name: "")
    return settings.WUKONGIM_DATA_DIR


def run_bootstrap() -> str:
    out = StringIO()
    call_command("bootstrap", stdout=out)
    return out.getvalue()


def contents(folder):
    return {file.name: file.read_text() for file in folder.iterdir()}


def test_bootstrap_makes_what_is_missing_for_its_owner_alone(folder):
    run_bootstrap()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert set(contents(folder)) == {"secret_key", "api_token", "admin_password"}
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o600}


def test_bootstrap_makes_an_admin_who_can_log_in(folder, client):
    printed = run_bootstrap()
    password = (folder / "admin_password").read_text().strip()
    assert password in printed
    admin = get_user_model().objects.get(username="admin")
    assert admin.is_superuser
    assert admin.check_password(password)


def test_bootstrap_prints_the_token_and_never_the_secret_key(folder):
    printed = run_bootstrap()
    assert (folder / "api_token").read_text().strip() in printed
    assert (folder / "secret_key").read_text().strip() not in printed


def test_bootstrap_again_changes_and_prints_nothing(folder):
    run_bootstrap()
    before = contents(folder)
    assert run_bootstrap() == ""
    assert contents(folder) == before
    assert get_user_model().objects.count() == 1


def test_bootstrap_makes_no_file_for_what_the_environment_gives(folder, monkeypatch):
    monkeypatch.setattr(bootstrap, "_setting", lambda name: "from the environment")
    run_bootstrap()
    assert set(contents(folder)) == {"admin_password"}


def test_bootstrap_leaves_an_installation_with_a_superuser_alone(folder):
    get_user_model().objects.create_superuser("root", password="secret")
    run_bootstrap()
    assert not (folder / "admin_password").exists()
    assert not get_user_model().objects.filter(username="admin").exists()


def test_bootstrap_finishes_what_a_crash_left_half_done(folder):
    folder.mkdir()
    (folder / "admin_password").write_text("kept-from-before\n")
    assert "kept-from-before" in run_bootstrap()
    assert get_user_model().objects.get(username="admin").check_password("kept-from-before")


def test_bootstrap_that_loses_the_race_for_the_admin_says_nothing(folder, monkeypatch):
    get_user_model().objects.create_superuser("admin", password="the winner's")
    folder.mkdir()
    manager = type(get_user_model().objects)
    monkeypatch.setattr(manager, "filter", lambda self, **conditions: self.none())
    assert bootstrap.make_admin(folder / "admin_password") is False


def test_keep_new_leaves_what_exists_and_no_drafts(tmp_path):
    assert bootstrap.keep_new(tmp_path / "key", 24) is True
    first = contents(tmp_path)
    assert bootstrap.keep_new(tmp_path / "key", 24) is False
    assert contents(tmp_path) == first


def test_bootstrap_says_so_where_the_data_folder_cannot_be_made(folder):
    folder.write_text("a file in its place")
    with pytest.raises(CommandError, match="Cannot make"):
        run_bootstrap()


def test_bootstrap_twice_at_once_in_a_new_installation_tells_each_secret_once(tmp_path):
    environ = {name: value for name, value in os.environ.items() if name[:9] != "WUKONGIM_"}
    environ["WUKONGIM_DATA_DIR"] = str(tmp_path / "data")
    manage = [sys.executable, str(Path(__file__).resolve().parents[2] / "manage.py")]
    subprocess.run([*manage, "migrate", "--verbosity", "0"], env=environ, check=True)
    both = [
        subprocess.Popen([*manage, "bootstrap"], env=environ, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    printed = "".join(process.communicate()[0] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    for what in ("Secret key", "API token", "Password"):
        assert printed.count(what) == 1

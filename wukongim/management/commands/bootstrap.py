"""`manage.py bootstrap`: the secrets and the admin that a fresh installation lacks."""

import os
import secrets
import tempfile
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError, IntegrityError, transaction

ADMIN = "admin"
KEY_BYTES = 48  # 384 random bits, 64 characters; Django warns under 50
TOKEN_BYTES = 24  # 192 random bits, 32 characters: out of reach of guessing, still copied by hand


class Command(BaseCommand):
    help = (
        "Makes what a fresh installation lacks: the secret key, the API token, and the user "
        '"admin" with a random password. Each is kept in the data folder, readable for its owner '
        "alone, and said once. What exists is left alone, so running it again is harmless. "
        "Run `migrate` first."
    )
    requires_system_checks = ()  # it runs before there is a secret key

    def handle(self, **options: Any) -> None:
        folder = _data_folder()
        # Two at once agree on each file, and so on what the one that wins tells.
        if not _setting("SECRET_KEY") and keep_new(folder / "secret_key", KEY_BYTES):
            self.stdout.write(f"Secret key made: {folder / 'secret_key'}")
        if not _setting("WUKONGIM_API_TOKEN") and keep_new(folder / "api_token", TOKEN_BYTES):
            self._tell("API token", folder / "api_token")
        if make_admin(folder / "admin_password"):
            self._tell(f'Password of "{ADMIN}"', folder / "admin_password")

    def _tell(self, what: str, file: Path) -> None:
        self.stdout.write(f"{what}: {file.read_text(encoding='utf-8').strip()}  (kept in {file})")


def keep_new(file: Path, size: int) -> bool:
    """Put `size` random bytes as text into `file` unless it exists; True if it did not.

    The file appears whole or not at all: it is written under another name and then linked, which
    fails where a file is, so no reader and no second writer meets half a secret.
    """
    with tempfile.NamedTemporaryFile("w", dir=file.parent, prefix=".new-") as draft:  # mode 600
        draft.write(secrets.token_urlsafe(size) + "\n")
        draft.flush()
        os.fsync(draft.fileno())
        try:
            os.link(draft.name, file)
        except FileExistsError:
            return False
    return True


def make_admin(file: Path) -> bool:
    """Make the first superuser, with the password in `file`; True if this call made it.

    The file comes first: whoever loses the race, or comes after a crash, uses the same password.
    """
    users = get_user_model()._default_manager
    name = get_user_model().USERNAME_FIELD
    try:
        if users.filter(is_superuser=True).exists() or users.filter(**{name: ADMIN}).exists():
            return False
        keep_new(file, TOKEN_BYTES)
        password = file.read_text(encoding="utf-8").strip()
        with transaction.atomic():
            users.create_superuser(**{name: ADMIN}, email="", password=password)
    except IntegrityError:
        return False
    except DatabaseError as error:
        raise CommandError(f"The database is not ready ({error}): run `migrate` first.") from error
    return True


def _data_folder() -> Path:
    folder = getattr(settings, "WUKONGIM_DATA_DIR", None)
    if folder is None:
        raise CommandError("Set WUKONGIM_DATA_DIR to the folder that shall keep the secrets.")
    try:
        Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"Cannot make {folder}: {error.strerror}.") from error
    return Path(folder)


def _setting(name: str) -> str:
    try:
        return getattr(settings, name, "")
    except ImproperlyConfigured:  # how Django says that SECRET_KEY is empty
        return ""

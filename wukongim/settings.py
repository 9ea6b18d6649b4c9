"""Every setting of the project. A deployment differs by its WUKONGIM_* variables alone."""

import sys
import warnings
from pathlib import Path

import structlog
from corsheaders.defaults import default_headers

from wukongim import environment

BASE_DIR = Path(__file__).resolve().parent.parent

# --- What differs between deployments ---------------------------------------------------------

DEBUG = environment.flag("DEBUG")
WUKONGIM_DATA_DIR = Path(environment.text("DATA_DIR", str(BASE_DIR / "var"))).absolute()

# Both are made by `manage.py bootstrap`. Without a key Django refuses to sign; without a token
# the HTTP API is closed.
SECRET_KEY = environment.secret("SECRET_KEY", WUKONGIM_DATA_DIR)
WUKONGIM_API_TOKEN = environment.secret("API_TOKEN", WUKONGIM_DATA_DIR)

ALLOWED_HOSTS = environment.words("ALLOWED_HOSTS", ["127.0.0.1", "localhost", "[::1]"])
# Origins (https://chat.example) whose pages may open a socket here. Empty: only pages of this
# very host, and clients that are no browser and send no Origin.
WUKONGIM_ALLOWED_ORIGINS = environment.words("ALLOWED_ORIGINS", [])
# Origins whose pages may call the HTTP API from a browser, which shows them the answers then.
CORS_ALLOWED_ORIGINS = environment.words("API_CORS_ORIGINS", [])
# Networks (10.1.2.0/24) whose callers need no token. Empty: everybody needs it.
WUKONGIM_API_OPEN_TO = environment.words("API_OPEN_TO", [])

DATABASES = {"default": environment.database(WUKONGIM_DATA_DIR)}
CHANNEL_LAYERS = environment.channel_layers(
    environment.text("REDIS_URL"), environment.text("REDIS_PREFIX", "wukongim")
)

# Limits and periods of the apps; their names and defaults are in each app's conf.py.
MESSAGING = environment.table("MESSAGING")
SUBSCRIPTIONS = environment.table("SUBSCRIPTIONS")
WEBHOOKS = environment.table("WEBHOOKS")

# --- What does not ----------------------------------------------------------------------------

INSTALLED_APPS = [
    "wukongim",  # before staticfiles: its `runserver` speaks WebSocket
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "channels",
    "corsheaders",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "webhooks",
    "subscriptions",
    "messaging",
]

MIDDLEWARE = [
    "corsheaders.middleware.CorsMiddleware",  # first: a preflight has no token, and no page
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

ROOT_URLCONF = "wukongim.urls"
ASGI_APPLICATION = "wukongim.asgi.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]

LOGIN_REDIRECT_URL = "/admin/"

LANGUAGE_CODE = "en"
FORMAT_MODULE_PATH = "wukongim.formats"  # evidence has seconds and says which time it is
TIME_ZONE = "UTC"
USE_TZ = True

STATIC_URL = "static/"
# Files are served from the packages they came in: nothing to collect, nothing to forget.
WHITENOISE_USE_FINDERS = True
# WhiteNoise answers with a file, which ASGI has to read through a thread. That is what is wanted.
warnings.filterwarnings("ignore", message="StreamingHttpResponse must consume synchronous")

# 10,000 uids of 100 characters, each written \uXXXX, are 6 MB: so many join in one request.
DATA_UPLOAD_MAX_MEMORY_SIZE = 8 << 20

# Cookies are not marked Secure and nothing redirects to TLS, so that the admin works on
# http://127.0.0.1; the reverse proxy that ends TLS adds both (see docs).
SESSION_COOKIE_SAMESITE = "Lax"
CSRF_COOKIE_HTTPONLY = True
X_FRAME_OPTIONS = "DENY"

CORS_ALLOW_HEADERS = [*default_headers, "token"]
CORS_URLS_REGEX = r"/(?!admin/|static/)"  # the API alone

REST_FRAMEWORK = {
    # A view that names neither is closed, not open.
    "DEFAULT_AUTHENTICATION_CLASSES": [],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAdminUser"],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "TEST_REQUEST_DEFAULT_FORMAT": "json",
    "DEFAULT_SCHEMA_CLASS": "wukongim.openapi.Schema",
}

SPECTACULAR_SETTINGS = {
    "OAS_VERSION": "3.1.0",
    "TITLE": "WuKongIM HTTP API",
    "VERSION": "0.1.0",
    "DESCRIPTION": (
        "WuKongIM's endpoints, and below `/subscriptions/` those that say who hears what. Bodies"
        " are JSON whatever the `Content-Type`. In WuKongIM's endpoints unknown fields are ignored,"
        " and `null` is as good as leaving a field out."
    ),
    "DISABLE_DOCSTRING_DESCRIPTIONS": True,  # those of serializers are for their readers
    "POSTPROCESSING_HOOKS": ["subscriptions.api.description.add_components"],
}

# --- Logs: to standard error, for eyes on a terminal and for machines elsewhere ----------------

_LOG_OUTPUT = (
    # Plain tracebacks: the coloured ones print local variables, and those may hold tokens.
    [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    if sys.stderr.isatty()
    else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
)

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "events": {
            "()": structlog.stdlib.ProcessorFormatter,
            "foreign_pre_chain": [
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                structlog.stdlib.ExtraAdder(),
            ],
            "processors": [
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_LOG_OUTPUT,
            ],
        },
    },
    "filters": {
        "peers_faults": {"()": "wukongim.log_filters.PeersFaults"},
        "requests": {"()": "wukongim.log_filters.Requests"},
        "unknown_hosts": {"()": "wukongim.log_filters.UnknownHosts"},
    },
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "events"}},
    "root": {"handlers": ["stderr"], "level": "INFO"},
    "loggers": {
        # Django's own handlers print only under DEBUG, and a second time.
        "django": {"handlers": [], "level": "INFO", "propagate": True},
        "django.server": {"handlers": [], "level": "INFO", "propagate": True},
        # One line a request and one a socket; sessions leave their own, without query strings.
        "uvicorn": {"level": "WARNING"},
        "httpx": {"level": "WARNING"},  # the same of webhooks, with all of an URL
        "uvicorn.error": {"filters": ["peers_faults"]},
        "django.request": {"filters": ["requests"]},
        "django.security.DisallowedHost": {"filters": ["unknown_hosts"]},
    },
}

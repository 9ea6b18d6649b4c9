"""What all views of the HTTP API share: the token, JSON in and out, one form of error."""

from __future__ import annotations

import json
from typing import IO, Any

from django.conf import settings
from django.http import HttpRequest
from rest_framework.exceptions import ParseError
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.parsers import BaseParser
from rest_framework.permissions import AllowAny, IsAuthenticated
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.serializers import Serializer
from rest_framework.views import APIView

from subscriptions.api.authentication import ApiTokenAuthentication
from subscriptions.api.exceptions import BadRequest, answer_error

ACTOR = "api"
"""Who changed a membership, in the change log, when it was the HTTP API."""


class JSONBody(BaseParser):
    """JSON whatever the Content-Type says, up to Django's DATA_UPLOAD_MAX_MEMORY_SIZE bytes."""

    media_type = "*/*"
    kind: type = dict
    kind_name = "object"

    def parse(self, stream: IO[Any], media_type: Any = None, parser_context: Any = None) -> Any:
        """The body; an empty one is an empty object. Raises BadRequest and ParseError (400)."""
        limit = settings.DATA_UPLOAD_MAX_MEMORY_SIZE
        raw = stream.read() if limit is None else stream.read(limit + 1)
        if limit is not None and len(raw) > limit:
            raise BadRequest(f"The body has more than {limit} bytes. Send it in smaller parts.")
        try:
            body = json.loads(raw, parse_constant=_refuse) if raw.strip() else self.kind()
        except (ValueError, RecursionError) as error:
            reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
            raise ParseError(f"The body is not JSON: {reason}.") from error
        if not isinstance(body, self.kind):
            found = type(body).__name__
            raise ParseError(f"The body must be a JSON {self.kind_name}, not {found}.")
        return body


class JSONArrayBody(JSONBody):
    """The same for the endpoints whose body is a bare array."""

    kind = list
    kind_name = "array"


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON value")


class OnlyJSON(BaseContentNegotiation):
    """One parser and one renderer: neither Content-Type nor Accept is asked."""

    def select_parser(self, request: Request, parsers: Any) -> Any:
        """The only parser."""
        return parsers[0]

    def select_renderer(self, request: Request, renderers: Any, format_suffix: Any = None) -> Any:
        """The only renderer, with its media type."""
        return renderers[0], renderers[0].media_type


class ApiView(APIView):
    """A view behind the API token. `body` and `query` answer 400 for what they refuse."""

    authentication_classes = [ApiTokenAuthentication]
    permission_classes = [IsAuthenticated]
    parser_classes = [JSONBody]
    renderer_classes = [JSONRenderer]
    content_negotiation_class = OnlyJSON
    throttle_classes = []

    def initialize_request(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Request:
        """REST framework takes a chunked body, which has no length, for none: say that it has."""
        request.META.setdefault("CONTENT_LENGTH", "-1")
        return super().initialize_request(request, *args, **kwargs)

    def get_exception_handler(self) -> Any:
        """The same for every view, whatever the project has set for its own."""
        return answer_error

    def body(self, serializer: type[Serializer]) -> dict[str, Any]:
        """The request's body as `serializer` cleans it."""
        return self._cleaned(serializer(data=self.request.data))

    def query(self, serializer: type[Serializer]) -> dict[str, Any]:
        """The query string as `serializer` cleans it. Refuses a name that is there twice."""
        given = self.request.query_params
        twice = [name for name, values in given.lists() if len(values) > 1]
        if twice:
            raise BadRequest(f"{', '.join(twice)[:200]}: is given more than once.")
        return self._cleaned(serializer(data=given.dict()))

    def _cleaned(self, serializer: Serializer) -> dict[str, Any]:
        serializer.is_valid(raise_exception=True)
        cleaned: dict[str, Any] = serializer.validated_data
        return cleaned


class OpenView(ApiView):
    """A view that needs no token, since it tells nothing that is not plain from connecting."""

    authentication_classes = []
    permission_classes = [AllowAny]

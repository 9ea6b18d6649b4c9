"""How views are described in OpenAPI 3.1: a table says what each takes and answers.

No view imports this, so that a project without drf-spectacular serves the same API undescribed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import cleandoc
from typing import Any, ClassVar, TypeVar

from drf_spectacular.drainage import warn
from drf_spectacular.extensions import (
    OpenApiAuthenticationExtension,
    OpenApiSerializerExtension,
    OpenApiSerializerFieldExtension,
)
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.utils import OpenApiExample, OpenApiParameter, OpenApiRequest, OpenApiResponse
from rest_framework.serializers import ChoiceField, Field, Serializer
from rest_framework.views import APIView

from subscriptions.api import serializers
from subscriptions.api.authentication import ApiTokenAuthentication
from subscriptions.audit import Kind
from subscriptions.conf import conf
from subscriptions.explain.questions import LARGEST
from subscriptions.names import UID_LENGTH

Schema = dict[str, Any]
"""A JSON schema."""

# --- shapes -------------------------------------------------------------------------------------

TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer", "minimum": 0, "maximum": LARGEST}
NUMBER: Schema = {"type": "number", "minimum": 0}
SWITCH: Schema = {"type": "integer", "enum": [0, 1]}
BOOLEAN: Schema = {"type": "boolean"}
TIME: Schema = {"type": "string", "format": "date-time"}
ID: Schema = {"type": "string", "format": "uuid"}


def shape(optional: str = "", /, **properties: Schema) -> Schema:
    """An object with just these properties; those that `optional` names may be missing."""
    required = [name for name in properties if name not in optional.split()]
    return {
        "type": "object",
        "properties": properties,
        **({"required": required} if required else {}),
        "additionalProperties": False,
    }


def many(items: Schema) -> Schema:
    """A list."""
    return {"type": "array", "items": items}


def table(values: Schema) -> Schema:
    """An object whose names are data."""
    return {"type": "object", "additionalProperties": values}


def one_of(*values: Any) -> Schema:
    """Exactly these values."""
    return {"enum": list(values)}


def either(*schemas: Schema) -> Schema:
    """Any of these."""
    return {"anyOf": list(schemas)}


def or_null(schema: Schema) -> Schema:
    """This, or null."""
    return either(schema, {"type": "null"})


COMPONENTS: dict[str, Schema] = {}


def named(name: str, schema: Schema) -> Schema:
    """A reference to `schema`, which stands once among the components, under this name."""
    COMPONENTS[name] = schema
    return {"$ref": f"#/components/schemas/{name}"}


def add_components(result: Any, **kwargs: Any) -> Any:
    """drf-spectacular's hook after all paths: adds what is `named`, and how to authenticate."""
    components = result["components"]
    components["schemas"] = {**components.get("schemas", {}), **COMPONENTS}
    components["securitySchemes"] = SCHEMES
    return result


DONE = named("Done", shape(status=one_of(200)))
ERROR = named("Error", shape("reason", msg=TEXT, status={"type": "integer"}, reason=WHOLE))

# --- operations ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer: what its body looks like, and one body as an example."""

    schema: Schema
    example: Any
    text: str = ""


def error(status: int, msg: str, text: str, **more: Any) -> Answer:
    """An answer that says what is wrong."""
    return Answer(ERROR, {"msg": msg, "status": status, **more}, text)


ERRORS = {
    400: error(400, "channel_id: is required.", "The request cannot be done as it is."),
    401: error(401, "Send the API token in the header `token`.", "No token, or a wrong one."),
    405: error(405, 'Method "PUT" not allowed.', "Another method."),
    503: error(
        503,
        "The database is busy or away: nothing was changed; try again.",
        "The server cannot answer now; the same request may do later.",
    ),
}
"""What every operation may answer, the 401 where a token is asked for."""


@dataclass(frozen=True, slots=True)
class Operation:
    """What a view takes and answers. What it is for, its docstrings say.

    `body` and `query` are the serializers that the view reads, or a schema where it has none, and
    `path` has schemas of what the path names. `example` is a body as an example, `given` has such
    values for the query and the path. `others` are answers besides `answer` and ERRORS.
    """

    answer: Answer
    body: type[Serializer] | Schema | None = None
    query: type[Serializer] | None = None
    path: Mapping[str, Schema] = field(default_factory=dict)
    example: Any = None
    given: Mapping[str, Any] = field(default_factory=dict)
    status: int = 200
    others: Mapping[int, Answer] = field(default_factory=dict)
    media_types: tuple[str, ...] = ("application/json",)


class DescribedSchema(AutoSchema):
    """Describes each view by its `Operation`. Views that have none are warned of."""

    operations: ClassVar[Mapping[type[APIView], Operation]] = {}
    notes: ClassVar[Mapping[str, str]] = {}
    """What fields mean, by their names."""

    @property
    def operation(self) -> Operation:
        """The view's entry in the table."""
        return self.operations[type(self.view)]

    def is_excluded(self) -> bool:
        """Whether there is nothing to say."""
        missing = type(self.view) not in self.operations
        if missing:
            warn(f"{type(self.view).__qualname__} is not described")
        return missing

    def get_operation_id(self) -> str:
        """Method and path: stable, and each there is once."""
        return "_".join([self.method.lower(), *re.findall(r"\w+", self.path)])

    def get_summary(self) -> str:
        """The first line of the view's docstring, without method and path. No Markdown there."""
        line = cleandoc(type(self.view).__doc__ or "").partition("\n")[0]
        text = (line.partition(": ")[2] or line).replace("`", "")
        return text[:1].upper() + text[1:]

    def get_description(self) -> str:  # type: ignore[override]  # as AutoSchema has it
        """The docstring of the method that answers."""
        return cleandoc(getattr(self.view, self.method.lower()).__doc__ or "")

    def get_serializer_name(self, serializer: Serializer, direction: Any) -> str:
        """The class's name, after that of its module where it is not among the others."""
        module = type(serializer).__module__.rpartition(".")[2]
        prefix = "" if module == "serializers" else module.title()
        return prefix + type(serializer).__name__

    def map_parsers(self) -> list[str]:
        """What clients should send, though anything is read as JSON."""
        return ["application/json"]

    def get_request_serializer(self) -> Any:
        """The body, with its example."""
        operation = self.operation
        if operation.body is None:
            return None
        examples = [OpenApiExample("request", operation.example)]
        return {"application/json": OpenApiRequest(operation.body, examples=examples)}

    def get_response_serializers(self) -> Any:
        """Every answer by its status, with an example."""
        operation = self.operation
        answers = {operation.status: operation.answer, **self._errors(), **operation.others}
        return {
            (status, *self._media_types(status)): OpenApiResponse(
                answer.schema,
                description=answer.text,
                examples=[OpenApiExample("answer", answer.example, status_codes=[status])],
            )
            for status, answer in sorted(answers.items())
        }

    def _errors(self) -> dict[int, Answer]:
        closed = bool(self.view.get_authenticators())
        return {status: each for status, each in ERRORS.items() if closed or status != 401}

    def _media_types(self, status: int) -> tuple[str, ...]:
        own = status == self.operation.status
        return self.operation.media_types if own else ("application/json",)

    def get_override_parameters(self) -> list[Any]:
        """The query string's parameters and the path's, with examples."""
        operation = self.operation
        schemas = dict(operation.path)
        fields = operation.query().fields if operation.query else {}
        schemas |= {
            name: self._map_serializer_field(each, "request") for name, each in fields.items()
        }
        return [
            OpenApiParameter(
                name,
                schema,
                OpenApiParameter.PATH if name in operation.path else OpenApiParameter.QUERY,
                required=name in operation.path or fields[name].required,
                description=self.notes.get(name, ""),
                examples=[
                    OpenApiExample("request", value)
                    for given, value in operation.given.items()
                    if given == name
                ],
            )
            for name, schema in schemas.items()
        ]

    def _is_list_view(self, serializer: Any = None) -> bool:
        """Never: the table says what a list looks like."""
        return False


# --- authentication -----------------------------------------------------------------------------

SCHEMES: dict[str, Schema] = {
    "token": {"type": "apiKey", "in": "header", "name": "token"},
    "basic": {
        "type": "http",
        "scheme": "basic",
        "description": "The token as the password, with any user name.",
    },
    "bearer": {"type": "http", "scheme": "bearer"},
}


class TokenExtension(OpenApiAuthenticationExtension):
    """The API token: in its header, or as HTTP's `Authorization` has it."""

    target_class = ApiTokenAuthentication
    match_subclasses = True

    @property
    def name(self) -> list[str]:  # type: ignore[override]  # the schemes differ by class
        """The header, and the schemes that the class takes."""
        return ["token", *self.target.schemes]

    def get_security_requirement(self, auto_schema: AutoSchema) -> list[dict[str, list[Any]]]:
        """Any one of them is enough."""
        return [{name: []} for name in self.name]

    def get_security_definition(self, auto_schema: AutoSchema) -> list[Schema]:
        """None of its own: classes share them."""
        return []


# --- what is read -------------------------------------------------------------------------------

F = TypeVar("F", bound=Field)
NO_CONTROL = r"\u0000-\u001f\u007f-\u009f"
PATTERN = f"^[^{NO_CONTROL}]*$"
UID_PATTERN = f"^[^@#&{NO_CONTROL}]*$"


def describes(kind: type[F]) -> Callable[[Callable[[F], Schema]], Callable[[F], Schema]]:
    """Makes a function say what fields of just this class look like."""

    def register(schema_of: Callable[[F], Schema]) -> Callable[[F], Schema]:
        def answer(extension: Any, auto_schema: AutoSchema, direction: str) -> Schema:
            return schema_of(extension.target)

        members = {"target_class": kind, "map_serializer_field": answer}
        type(f"{kind.__name__}Extension", (OpenApiSerializerFieldExtension,), members)
        return schema_of

    return register


@describes(serializers.TextField)
def text(each: serializers.TextField) -> Schema:
    """A string within its length."""
    least = 0 if each.blank else 1
    return {"type": "string", "minLength": least, "maxLength": each.longest, "pattern": PATTERN}


@describes(serializers.UidField)
def uid(each: serializers.UidField) -> Schema:
    """A uid."""
    return {**text(each), "maxLength": UID_LENGTH, "pattern": UID_PATTERN}


@describes(serializers.UidsField)
def uids(each: serializers.UidsField) -> Schema:
    """A list of uids, and of blanks, which are dropped."""
    return many({"type": "string", "maxLength": UID_LENGTH, "pattern": UID_PATTERN})


@describes(serializers.WholeField)
def whole(each: serializers.WholeField) -> Schema:
    """An integer within its bounds."""
    return {"type": "integer", "minimum": each.low, "maximum": each.high}


@describes(serializers.SwitchField)
def switch(each: serializers.SwitchField) -> Schema:
    """0 or 1, as a number or as a boolean."""
    return either(SWITCH, BOOLEAN)


@describes(ChoiceField)
def choice(each: ChoiceField) -> Schema:
    """One of some words."""
    return one_of(*each.choices)


@describes(serializers.ChannelKeyField)
def channel_key(each: serializers.ChannelKeyField) -> Schema:
    """`TYPE:ID`."""
    return {"type": "string", "maxLength": each.longest, "pattern": f"^[0-9]+:[^{NO_CONTROL}]+$"}


@describes(serializers.LimitField)
def limit(each: serializers.LimitField) -> Schema:
    """Rows of a page."""
    return {"type": "integer", "minimum": 1}


@describes(serializers.SeqField)
def seq(each: serializers.SeqField) -> Schema:
    """A message's seq."""
    return WHOLE


@describes(serializers.ScopesField)
def scopes(each: serializers.ScopesField) -> Schema:
    """One scope, or a list of them."""
    channel = channel_key(serializers.ChannelKeyField(longest=210))
    scope = {
        **shape("channel uid", channel=channel, uid=uid(serializers.UidField())),
        "minProperties": 1,
    }
    return either(scope, {**many(scope), "minItems": 1, "maxItems": conf().audit_scopes})


@describes(serializers.KindsField)
def kinds(each: serializers.KindsField) -> Schema:
    """Kinds of findings."""
    return many(one_of(*Kind))


class BodyExtension(OpenApiSerializerExtension):
    """Bodies say what their fields mean, and the strict ones that there are no others."""

    target_class = serializers.Body
    match_subclasses = True

    def map_serializer(self, auto_schema: Any, direction: Any) -> Schema:
        """As usual, and this."""
        usual = auto_schema._map_serializer(self.target, direction, bypass_extensions=True)
        for name, each in usual.get("properties", {}).items():
            if name in auto_schema.notes:
                each["description"] = auto_schema.notes[name]
        if isinstance(self.target, serializers.StrictBody):
            usual["additionalProperties"] = False
        return dict(usual)

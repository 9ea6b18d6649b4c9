"""The page "Explain a delivery": who, where, which message? One verdict, and what it rests on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django import forms
from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db import models
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils.translation import gettext_lazy as _

from subscriptions.admin_parts import ReadOnly, link, may_view, page_model
from subscriptions.bindings import ChannelKey
from subscriptions.errors import SubscriptionsError
from subscriptions.explain.evidence import Evidence
from subscriptions.explain.questions import LARGEST, explain_delivery, make_question
from subscriptions.explain.verdicts import Verdict
from subscriptions.models import Membership

LABEL = Membership._meta.app_label
OUR_APPS = "wukongim_"
"""How the labels of this project's apps begin: another project's may have a model Message, too."""

TONES = {
    Verdict.NOT_YET_DELIVERED: "error",
    Verdict.NO_SUCH_MESSAGE: "error",
    Verdict.SENDER_REFUSED: "warning",
    Verdict.NODE_LOST: "warning",
    Verdict.SESSION_ENDED: "warning",
    Verdict.UNCLEAN_END: "warning",
    Verdict.SESSION_BOUNDARY: "warning",
    Verdict.UNKNOWN: "warning",
    Verdict.UNCHECKED: "warning",
    Verdict.HEALED: "success",
    Verdict.DELIVERED_NORMALLY: "success",
    Verdict.OWN_MESSAGE: "success",
}
"""The colours of verdicts; the others are right as they are, and plain."""


class QuestionForm(forms.Form):
    """Who, where, and which message: by its seq, or by sender and client message number."""

    uid = forms.CharField(label=_("uid"), max_length=100, help_text=_("Who did not hear?"))
    channel = forms.CharField(
        label=_("channel"),
        max_length=210,
        help_text=_("TYPE:ID, for example 2:team; of two people 1: and the other's uid."),
    )
    seq = forms.IntegerField(label=_("seq"), required=False, min_value=0, max_value=LARGEST)
    sender = forms.CharField(label=_("sender"), max_length=100, required=False)
    client_msg_no = forms.CharField(
        label=_("client message no."),
        max_length=100,
        required=False,
        help_text=_("Instead of the seq, with the sender: a message that may have been refused."),
    )

    def clean(self) -> dict[str, Any]:
        """The question, in `question`. Errors are the services' own words."""
        given = self.cleaned_data
        if "uid" in given and "channel" in given:
            try:
                given["question"] = make_question(
                    given["uid"], ChannelKey.parse(given["channel"].strip()), given.get("seq"),
                    given.get("sender", ""), given.get("client_msg_no", ""),
                )  # fmt: skip
            except (SubscriptionsError, ValueError) as error:
                raise forms.ValidationError(str(error)) from error
        return given


@admin.register(page_model("Explanation", _("explain a delivery")))
class ExplanationAdmin(ReadOnly, admin.ModelAdmin):
    """The page. A question is its address, so that an answer can be sent to somebody. For whoever
    may check group bindings: it tells who said when how much, and never what."""

    def get_urls(self) -> list[Any]:
        """This one and no others."""
        name = f"{LABEL}_{self.opts.model_name}_changelist"
        return [path("", self.admin_site.admin_view(self.page), name=name)]

    def has_module_permission(self, request: HttpRequest) -> bool:
        """As for the page."""
        return self.has_view_permission(request)

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Whether this user may check."""
        return request.user.has_perm(f"{LABEL}.check_group_bindings")

    def page(self, request: HttpRequest) -> HttpResponse:
        """The form, and below it the answer once there is a question."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        asked = "uid" in request.GET
        form = QuestionForm(request.GET) if asked else QuestionForm(initial=request.GET.dict())
        context = {
            **self.admin_site.each_context(request),
            "title": _("Explain a delivery"),
            "opts": self.opts,
            "form": form,
        }
        if asked and form.is_valid():
            context |= self._answer(request, form)
        return TemplateResponse(request, f"admin/{LABEL}/explain.html", context)

    def _answer(self, request: HttpRequest, form: QuestionForm) -> dict[str, Any]:
        question = form.cleaned_data["question"]
        explanation = explain_delivery(question)
        return {
            "question": question,
            "explanation": explanation,
            "tone": TONES.get(explanation.verdict, "plain"),
            "evidence": [(line, self._row(request, line)) for line in explanation.evidence],
        }

    def _row(self, request: HttpRequest, line: Evidence) -> str:
        """The row that a fact is from, as a link for those who may see it."""
        text = f"{line.source} {line.id}"
        for model in self._models():
            if model._meta.model_name == line.source.replace(" ", "") and may_view(request, model):
                page = f"{model._meta.app_label}_{model._meta.model_name}_change"
                return link(reverse(f"{self.admin_site.name}:{page}", args=[line.id]), text)
        return text

    def _models(self) -> Iterable[type[models.Model]]:
        return [
            model
            for model in self.admin_site._registry
            if model._meta.app_label.startswith(OUR_APPS)
        ]

"""GET /metrics: what all processes of this server have counted, and the findings that are open."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

from django.db import Error
from django.http import HttpResponse
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.multiprocess import MultiProcessCollector
from rest_framework.request import Request

from messaging import metrics  # noqa: F401 - puts this app's metrics into the registry
from messaging.metrics import WORKERS_FOLDER
from subscriptions.api import health
from subscriptions.api.authentication import ApiTokenAuthentication
from subscriptions.api.base import ApiView
from subscriptions.audit import Kind
from subscriptions.metrics import REGISTRY
from webhooks.metrics import dead_letters, oldest_seconds

logger = logging.getLogger(__name__)


class ScrapeAuthentication(ApiTokenAuthentication):
    """The API token as everywhere, and as a bearer's, which is what Prometheus sends."""

    schemes = ("basic", "bearer")


class Metrics(ApiView):
    """GET /metrics: all metrics, in the format that the scraper asks for."""

    authentication_classes = [ScrapeAuthentication]

    def get(self, request: Request) -> HttpResponse:
        """Always 200. While the database fails, what is asked of it is left out."""
        encode, content_type = choose_encoder(request.META.get("HTTP_ACCEPT", ""))
        everything = CollectorRegistry()
        everything.register(Workers() if os.environ.get(WORKERS_FOLDER) else REGISTRY)
        everything.register(OpenFindings())
        everything.register(WaitingWebhooks())
        return HttpResponse(encode(everything), content_type=content_type)


class Workers:
    """What the processes that share a folder have counted; of ours alone."""

    def collect(self) -> Iterator[Metric]:
        """The sums, and of gauges what their mode says."""
        for metric in MultiProcessCollector(None).collect():
            if metric.name.startswith("wukongim_"):
                yield metric


class OpenFindings:
    """The findings that are open, as the database has them: the same for every process that is
    asked, whoever found them."""

    def describe(self) -> list[GaugeMetricFamily]:
        """Both, without values."""
        return [
            GaugeMetricFamily(
                "wukongim_findings_open",
                "Open findings in the database, the same on each server.", labels=["kind"],
            ),
            GaugeMetricFamily(
                "wukongim_findings_oldest_age_seconds",
                "Age of the oldest finding that is open; 0 where none is.", labels=["kind"],
            ),
        ]  # fmt: skip

    def collect(self) -> list[GaugeMetricFamily]:
        """Both, with a value for every kind; nothing when the database cannot say."""
        try:
            open_findings = health.open_by_kind()
        except Error:
            logger.exception("metrics.incomplete")
            return []
        number, age = families = self.describe()
        for kind in Kind:
            found = open_findings.get(kind)
            number.add_metric([kind], found.count if found else 0)
            age.add_metric([kind], found.oldest_seconds if found else 0)
        return families


class WaitingWebhooks:
    """How webhooks stand, as the database has it: the same for every process that is asked."""

    def describe(self) -> list[GaugeMetricFamily]:
        """Both, without values."""
        return [
            GaugeMetricFamily(
                "wukongim_webhooks_oldest_seconds",
                "How long the oldest webhook event has waited; 0 where none does.", labels=[],
            ),
            GaugeMetricFamily(
                "wukongim_webhooks_dead_letters",
                "Webhook events that were given up, and not sent again.", labels=[],
            ),
        ]  # fmt: skip

    def collect(self) -> list[GaugeMetricFamily]:
        """Both; nothing when the database cannot say."""
        try:
            values = oldest_seconds(), dead_letters()
        except Error:
            logger.exception("metrics.incomplete")
            return []
        families = self.describe()
        for family, value in zip(families, values, strict=True):
            family.add_metric([], value)
        return families

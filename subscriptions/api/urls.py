"""The paths of this API, to be included by a project under a prefix of its choice."""

from django.urls import path

from subscriptions.api import views

urlpatterns = [
    path("memberships", views.MembershipList.as_view(), name="subscriptions-memberships"),
    path("findings", views.FindingList.as_view(), name="subscriptions-findings"),
    path("explanations", views.Explanations.as_view(), name="subscriptions-explanations"),
    path("health", views.Health.as_view(), name="subscriptions-health"),
    path("audits", views.AuditCollection.as_view(), name="subscriptions-audits"),
    path("audits/<str:pk>", views.AuditDetail.as_view(), name="subscriptions-audit"),
    path("repairs", views.RepairCollection.as_view(), name="subscriptions-repairs"),
    path("repairs/<str:pk>", views.RepairDetail.as_view(), name="subscriptions-repair"),
]

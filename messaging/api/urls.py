"""The paths of this API, to be included by a project. WuKongIM's have no trailing slash."""

from django.urls import path

from messaging.api import metrics, views

urlpatterns = [
    path("user/token", views.UserToken.as_view()),
    path("user/onlinestatus", views.OnlineStatus.as_view()),
    path("channel", views.ChannelSave.as_view()),
    path("channel/info", views.ChannelInfo.as_view()),
    path("channel/delete", views.ChannelDelete.as_view()),
    path("channel/subscriber_add", views.SubscriberAdd.as_view()),
    path("channel/subscriber_remove", views.SubscriberRemove.as_view()),
    path("channel/subscriber_remove_all", views.SubscriberRemoveAll.as_view()),
    path("channel/messagesync", views.MessageSync.as_view()),
    path("message/send", views.MessageSend.as_view()),
    path("route", views.Route.as_view()),
    path("health", views.Health.as_view()),
    path("readyz", views.Ready.as_view()),
    path("metrics", metrics.Metrics.as_view()),
]

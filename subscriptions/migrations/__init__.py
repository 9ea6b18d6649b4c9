"""Schema history; the triggers are installed after it, by subscriptions.triggers."""

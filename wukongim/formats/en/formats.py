"""Times to the second, with their zone, in the order that lists sort by."""

DATETIME_FORMAT = "Y-m-d H:i:s T"

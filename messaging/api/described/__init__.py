"""What WuKongIM's endpoints take and answer, for the OpenAPI description."""

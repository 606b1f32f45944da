"""The unit of measurement: a picker that does nothing, on the reference gRPC stack."""

"""A gateway on loopback: a real Envoy, configured as the gateways configure it. For the demo, tests and benchmarks."""

"""Load from outside: a C++ client that plays Envoy, built on first use."""

"""Envoy's external processing protocol: bytes of gRPC messages in, bytes of replies out, one `Exchange` per request.

Nothing here knows of sockets or tasks but `service.py`, which ties an `Exchange` to a call of the transport.
"""

"""What model servers tell about their KV caches: ZMQ subscriptions, event decoding, sequence gaps and replay."""

"""A publisher as a process of its own, to be killed: PORT REPLAY_PORT MODE. It prints `ready`, then a line per message.

MODE `steady`: a block every 20 ms. `flood`: as fast as it can, without end. `garbage`: random bytes, without end.
`wide`: without end, messages of 1 MB.
"""

from __future__ import annotations

import os
import sys
import time

import msgspec
import zmq


def main() -> None:
    """Publish until killed."""
    port, replay_port, mode = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    if mode != "steady":
        os.nice(15)  # it floods the receiver, not the machine
    context = zmq.Context()
    pub = context.socket(zmq.PUB)
    pub.set_hwm(1000)
    pub.bind(f"tcp://127.0.0.1:{port}")
    router = context.socket(zmq.ROUTER)
    router.bind(f"tcp://127.0.0.1:{replay_port}")
    buffer: list[bytes] = []
    print("ready", flush=True)
    seq = 0
    tokens = list(range(16 * 16))
    wide = list(range(100_000, 300_000))
    while True:
        if router.poll(0):
            client, _, start = router.recv_multipart()
            for number in range(int.from_bytes(start, "big"), len(buffer)):
                router.send_multipart([client, b"", b"t", number.to_bytes(8, "big"), buffer[number]])
            router.send_multipart([client, b"", b"", b"\xff" * 8, b""])
        if mode == "garbage":
            payload = os.urandom(200)
        elif mode == "steady":
            event = {"type": "BlockStored", "block_hashes": [seq], "token_ids": [1], "block_size": 1}
            payload = msgspec.msgpack.encode([time.time(), [event], 0])
        elif mode == "wide":
            event = {"type": "BlockStored", "block_hashes": [0] * 2, "token_ids": wide, "block_size": 100_000}
            payload = msgspec.msgpack.encode([time.time(), [event], 0])
        else:
            event = {"type": "BlockStored", "block_hashes": [seq] * 16, "token_ids": tokens, "block_size": 16}
            payload = msgspec.msgpack.encode([time.time(), [event], 0])
        if mode != "steady":
            buffer = []
        buffer.append(payload)
        pub.send_multipart([b"kv@x@m", seq.to_bytes(8, "big"), payload])
        seq += 1
        if mode == "steady":
            print(seq, flush=True)
            time.sleep(0.02)


if __name__ == "__main__":
    main()

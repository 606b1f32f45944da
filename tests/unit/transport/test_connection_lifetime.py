"""What is left of a connection that is gone: nothing, at once."""

import asyncio
import gc
import weakref

from epp.transport.frames import PREFACE
from epp.transport.protocol import SocketProtocol
from epp.transport.server import Server

SETTINGS = b"\0\0\0\4\0\0\0\0\0"


async def test_a_lost_connection_leaves_no_cycle() -> None:
    server = Server({})
    port = await server.start("127.0.0.1", 0)
    gone: list[weakref.ref[object]] = []
    opened = server.opened

    def watch(protocol: SocketProtocol) -> bool:
        gone.append(weakref.ref(protocol.connection))
        return opened(protocol)

    server.opened = watch  # type: ignore[method-assign]
    gc.collect()
    gc.disable()
    try:
        for abruptly in (True, False):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(PREFACE + SETTINGS)
            assert await reader.readexactly(9)
            if abruptly:
                writer.transport.abort()
            else:
                writer.close()
        for _ in range(200):
            if len(gone) == 2 and not any(connection() for connection in gone):
                break
            await asyncio.sleep(0.02)
        assert [connection() for connection in gone] == [None, None]
    finally:
        gc.enable()
        await server.close()

"""A TCP relay that makes a bad network of a good one: bytes are late by `delay_s`, and none comes while it is cut."""

from __future__ import annotations

import asyncio
import threading


class Relay:
    """Listens on a port of this host and hands everything on to another. Thread-safe."""

    def __init__(self, address, port):
        self.target = address, port
        self.delay_s = 0.0
        self.whole = True
        self._writers = set()
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        assert self._started.wait(30)

    def cut(self):
        """Break every connection, and take none until `mend`."""
        self.whole = False
        asyncio.run_coroutine_threadsafe(self._break(), self._loop).result()

    def mend(self):
        self.whole = True

    def close(self):
        asyncio.run_coroutine_threadsafe(self._break(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _serve(self):
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._take, "127.0.0.1", 0))
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))

    async def _break(self):
        for writer in list(self._writers):
            writer.transport.abort()
        self._writers.clear()

    async def _take(self, reader, writer):
        try:
            if not self.whole:
                raise ConnectionRefusedError
            there = await asyncio.open_connection(*self.target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, there[1]}
        await asyncio.gather(self._pump(reader, there[1]), self._pump(there[0], writer))

    async def _pump(self, reader, writer):
        try:
            while data := await reader.read(1 << 16):
                self._loop.call_later(self.delay_s, self._write, writer, data)
        except OSError:
            pass
        self._loop.call_later(self.delay_s, writer.transport.abort)

    @staticmethod
    def _write(writer, data):
        if not writer.is_closing():
            writer.write(data)

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
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    def _serve(self):
        with asyncio.Runner() as runner:
            self._loop = runner.get_loop()
            runner.run(self._relay())

    async def _relay(self):
        """Until `close`; then everything is closed to the end, also what came at the last moment."""
        self._over = asyncio.Event()
        server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._over.wait()
        self.whole = False
        server.close()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*(writer.wait_closed() for writer in self._writers), return_exceptions=True)

    async def _break(self):
        for writer in list(self._writers):
            writer.transport.abort()

    async def _take(self, reader, writer):
        self._writers.add(writer)
        try:
            if not self.whole:
                raise ConnectionRefusedError
            there = await asyncio.open_connection(*self.target)
        except OSError:
            writer.transport.abort()
            return
        self._writers.add(there[1])
        if not self.whole:  # it was cut meanwhile
            await self._break()
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

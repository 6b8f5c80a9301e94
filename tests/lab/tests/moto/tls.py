"""Takes TLS off connections: tls.py HOST PORT CERTIFICATE KEY TO_HOST TO_PORT. Says "ready"; ends with its standard input.

Only what reads itself from one side to the other: AWS's client insists on TLS and port 443 for tunnels.
"""

import asyncio
import os
import ssl
import sys
import threading


async def copy(reader, writer):
    """Until the end of one side."""
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except (ConnectionError, ssl.SSLError):
        pass
    finally:
        writer.close()


async def main(host, port, certificate, key, to_host, to_port):
    """Serves for ever."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def relay(reader, writer):
        there, to = await asyncio.open_connection(to_host, int(to_port))
        await asyncio.gather(copy(reader, to), copy(there, writer))

    server = await asyncio.start_server(relay, host, int(port), ssl=context)
    print("ready", flush=True)
    await server.serve_forever()


threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
asyncio.run(main(*sys.argv[1:]))

/** A web server that knows WebSockets, for programs that come by a service. */
import { createHash } from 'node:crypto'
import { createServer as createHttpServer, type Server } from 'node:http'
import type { Socket } from 'node:net'

/** Says its name and the path; `/ws` is a WebSocket that says back. */
export function webServer(): Server {
  const server = createHttpServer((request, response) => response.end(`web ${request.url}`))
  server.on('upgrade', (request, socket) => {
    const magic = `${request.headers['sec-websocket-key']}258EAFA5-E914-47DA-95CA-C5AB0DC85B11`
    const accept = createHash('sha1').update(magic).digest('base64')
    const head = `Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: ${accept}\r\n\r\n`
    ;(socket as Socket).write(`HTTP/1.1 101 Switching Protocols\r\n${head}`)
    socket.on('error', () => undefined)
    socket.once('data', (frame: Buffer) => {
      // One short text, masked as clients do (RFC 6455, section 5.3).
      const length = (frame[1] ?? 0) & 0x7f
      const text = frame.subarray(6, 6 + length).map((byte, nth) => byte ^ (frame[2 + (nth % 4)] ?? 0))
      socket.write(Buffer.concat([Uint8Array.of(0x81, length), text]))
    })
  })
  return server
}

/**
 * The application behind what bench/forward.ts compares, a process of its own: one port sends so many bytes to whoever connects and ends, the other sends
 * back what it is sent.
 */
import { once } from 'node:events'
import { type AddressInfo, createServer, type Socket } from 'node:net'
import { fileURLToPath } from 'node:url'
import { Child, serveParent } from './child.ts'

const ROLE = 'forward-server'
const BLOCK = Buffer.alloc(256 * 1024, 7)

type Calls = { listen: { ask: { bytes: number; host?: string }; answer: { bulk: number; echo: number } } }
export type ForwardServer = Child<Calls>

export function startForwardServer(namespace?: string): ForwardServer {
  return new Child<Calls>(fileURLToPath(import.meta.url), { role: ROLE, namespace })
}

async function listen(host: string, handle: (socket: Socket) => void): Promise<number> {
  const server = createServer({ noDelay: true }, (socket) => {
    socket.on('error', () => undefined)
    handle(socket)
  })
  server.listen(0, host)
  await once(server, 'listening')
  return (server.address() as AddressInfo).port
}

async function send(socket: Socket, bytes: number): Promise<void> {
  for (let left = bytes; left > 0; left -= BLOCK.byteLength) {
    if (!socket.write(BLOCK.subarray(0, Math.min(left, BLOCK.byteLength)))) await once(socket, 'drain')
  }
  socket.end()
}

serveParent<Calls>(ROLE, () => ({
  listen: async ({ bytes, host = '127.0.0.1' }) => ({
    bulk: await listen(host, (socket) => void send(socket, bytes).catch(() => socket.destroy())),
    echo: await listen(host, (socket) => socket.pipe(socket)),
  }),
}))

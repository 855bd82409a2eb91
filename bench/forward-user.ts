/**
 * Who uses what bench/forward.ts compares: a process in the network namespace of the near host, that connects to an address, or by a SOCKS 5 proxy to a
 * name, and measures.
 */
import { once } from 'node:events'
import { connect, type Socket } from 'node:net'
import { fileURLToPath } from 'node:url'
import { Child, serveParent } from './child.ts'
import { quantile } from './harness.ts'

const ROLE = 'forward-user'
/** Those at the beginning, which nobody counts. */
const WARM_UP = 10

/** Where to connect; by the proxy at that port, if there is one. */
export type Way = { host: string; port: number; proxy?: number }
type Calls = {
  /** Each of so many streams, at once; in seconds. */
  download: { ask: { way: Way; streams: number; bytes: number }; answer: number }
  roundTrips: { ask: { way: Way; count: number }; answer: { p50: number; p99: number } }
  /** From connecting to the first byte that comes back, each on a connection of its own; the median. */
  firstBytes: { ask: { way: Way; count: number }; answer: number }
}
export type ForwardUser = Child<Calls>

export function startForwardUser(namespace: string | undefined): ForwardUser {
  return new Child<Calls>(fileURLToPath(import.meta.url), { role: ROLE, namespace })
}

async function open({ host, port, proxy }: Way): Promise<Socket> {
  const socket = connect({ port: proxy ?? port, host: proxy === undefined ? host : '127.0.0.1', noDelay: true })
  if (proxy === undefined) return socket
  socket.write(Buffer.of(5, 1, 0))
  await once(socket, 'data')
  socket.write(Buffer.concat([Buffer.of(5, 1, 0, 3, host.length), Buffer.from(host), Buffer.of(port >> 8, port & 255)]))
  // The answer, which is followed by nothing that was not asked for on an echo; a download's first bytes come behind it.
  const [answer] = (await once(socket, 'data')) as [Buffer]
  if (answer[1] !== 0) throw new Error(`the proxy answers ${answer[1]}`)
  const rest = answer.subarray(10)
  if (rest.byteLength > 0) socket.unshift(rest)
  return socket
}

async function download(way: Way, bytes: number): Promise<void> {
  const socket = await open(way)
  let received = 0
  socket.on('data', (chunk) => {
    received += chunk.byteLength
  })
  await once(socket, 'close')
  if (received !== bytes) throw new Error(`${received} of ${bytes} bytes came`)
}

async function answered(socket: Socket): Promise<void> {
  socket.write('x')
  await once(socket, 'data')
}

serveParent<Calls>(ROLE, () => ({
  download: async ({ way, streams, bytes }) => {
    const startMs = performance.now()
    await Promise.all(Array.from({ length: streams }, () => download(way, bytes)))
    return (performance.now() - startMs) / 1_000
  },
  roundTrips: async ({ way, count }) => {
    const socket = await open(way)
    const samples: number[] = []
    for (let nth = 0; nth < count + WARM_UP; nth++) {
      const startMs = performance.now()
      await answered(socket)
      samples.push(performance.now() - startMs)
    }
    socket.destroy()
    const counted = samples.slice(WARM_UP)
    return { p50: quantile(counted, 0.5), p99: quantile(counted, 0.99) }
  },
  firstBytes: async ({ way, count }) => {
    const samples: number[] = []
    for (let nth = 0; nth < count; nth++) {
      const startMs = performance.now()
      const socket = await open(way)
      await answered(socket)
      samples.push(performance.now() - startMs)
      socket.destroy()
    }
    return quantile(samples, 0.5)
  },
}))

/**
 * `npm run soak -- tunnels [TUNNELS] [SECONDS]`: so many idle tunnels between two agents, each looked at now and then, for so long; the memory of
 * both when all are open, and at the end. The goal is that nothing grows.
 */
import { once } from 'node:events'
import { connect, type Socket } from 'node:net'
import { setTimeout as delay } from 'node:timers/promises'
import { startForwarding } from './forward-agents.ts'
import { startForwardServer } from './forward-server.ts'

const TUNNELS = 2_000
const SECONDS = 600
/** Opened at once: a program opens some, not all. */
const AT_ONCE = 16
/** Of each agent, while nothing is open any more: garbage that V8 has not collected. */
const GROWTH_BYTES_MAX = 48 * 1024 * 1024
const ROUND_MS = 10_000
const MB = 1024 * 1024

const [tunnels = TUNNELS, seconds = SECONDS] = process.argv.slice(2).map(Number)
await using stack = new AsyncDisposableStack()
const server = stack.use(startForwardServer())
const { echo, bulk } = await server.ask('listen', { bytes: 1 })
const { offering, using, ports } = await startForwarding({ bulk, echo }, new AbortController().signal, stack)
const memory = () => ({ offering: offering.rssBytes, using: using.rssBytes })
const before = memory()
const sockets: Socket[] = []
await Promise.all(
  Array.from({ length: AT_ONCE }, async () => {
    while (sockets.length < tunnels) sockets.push(await answers(open()))
  }),
)
const opened = memory()
tell('before', before)
tell(`${sockets.length} open`, opened)
const endMs = performance.now() + seconds * 1_000
for (let round = 0; performance.now() < endMs; round++) {
  await delay(Math.min(ROUND_MS, endMs - performance.now()))
  const one = sockets[(round * 97) % sockets.length]
  if (one !== undefined) await answers(one)
}
const end = memory()
tell(`after ${seconds} s`, end)
const perTunnel = (opened.offering + opened.using - before.offering - before.using) / sockets.length / 1_024
process.stdout.write(`${perTunnel.toFixed(1)} KiB a tunnel, both sides together\n`)
const closed = sockets.filter((socket) => socket.destroyed || socket.readyState !== 'open').length
const isFlat = end.offering - opened.offering < GROWTH_BYTES_MAX && end.using - opened.using < GROWTH_BYTES_MAX
process.stdout.write(closed > 0 ? `${closed} tunnels were lost\n` : isFlat ? 'flat\n' : 'it grows\n')
for (const socket of sockets) socket.destroy()
process.exitCode = closed === 0 && isFlat ? 0 : 1
await stack.disposeAsync()
process.exit()

function open(): Socket {
  const socket = connect(ports.echo, '127.0.0.1')
  socket.on('error', () => undefined)
  return socket
}

/** Resolves when what is said comes back. */
async function answers(socket: Socket): Promise<Socket> {
  socket.write('x')
  await once(socket, 'data')
  return socket
}

function tell(when: string, { offering: far, using: near }: ReturnType<typeof memory>): void {
  process.stdout.write(
    `${when}: ${(far / MB).toFixed(0)} MB where it is offered, ${(near / MB).toFixed(0)} MB where it is used\n`,
  )
}

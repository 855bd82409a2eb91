/**
 * One mesh node as a process of its own, for tests that put it into a network namespace: prints a JSON line for each event, until
 * standard input ends. Arguments: --mdns, --listen ADDRESS, --bootstrap ADDRESS, --chat (asks peers something all the time).
 */
import { parseArgs } from 'node:util'
import { pino } from 'pino'
import { ephemeralNodeKey } from '../../agent/identity/node-key.ts'
import { Host } from '../../agent/mesh/host.ts'
import { Keeper } from '../../agent/mesh/keeper.ts'
import { PeerBook } from '../../agent/mesh/peer-book.ts'
import { openDatabase } from '../../agent/state/database.ts'
import { openGate } from '../open-gate.ts'

const { values } = parseArgs({
  options: {
    mdns: { type: 'boolean', default: false },
    listen: { type: 'string', default: '/ip4/0.0.0.0/tcp/7477' },
    bootstrap: { type: 'string', multiple: true, default: [] },
    chat: { type: 'boolean', default: false },
  },
})

/** Between two questions. */
const CHAT_MS = 100

const log = pino({ level: 'silent' })
const key = ephemeralNodeKey()
const { listen, mdns } = values
const host = await Host.start({ key, gate: openGate(key), open: true, listen: [listen], mdns, log })
host.onPeer((peerId) => print({ event: 'peer', peerId }))
host.onPeerGone((peerId) => print({ event: 'gone', peerId }))
const keeper = Keeper.start({
  host,
  book: new PeerBook(openDatabase(':memory:')),
  bootstrap: values.bootstrap,
  maxPeers: 24,
  log,
})
print({ event: 'started', peerId: host.peerId, addresses: host.addresses() })

const chat = () => {
  for (const peerId of host.connected()) host.ping(peerId, AbortSignal.timeout(CHAT_MS * 20)).catch(() => undefined)
}
if (values.chat) setInterval(chat, CHAT_MS).unref()

for await (const _ of process.stdin) {
  // Nothing is asked of it.
}
await keeper[Symbol.asyncDispose]()
await host[Symbol.asyncDispose]()
process.exit(0)

function print(event: { event: string; peerId: string; addresses?: string[] }): void {
  process.stdout.write(`${JSON.stringify(event)}\n`)
}

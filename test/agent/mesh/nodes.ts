/**
 * Hosts and keepers on loopback for tests: made with one line, and stopped when the test ends, in whatever way it ends.
 */
import { once } from 'node:events'
import { type AddressInfo, connect, createServer, type Socket } from 'node:net'
import { DatabaseSync } from 'node:sqlite'
import { setTimeout as delay } from 'node:timers/promises'
import { type Multiaddr, multiaddr } from '@multiformats/multiaddr'
import { pino } from 'pino'
import { onTestFinished } from 'vitest'
import { ephemeralNodeKey, type NodeKey } from '../../../agent/identity/node-key.ts'
import type { PubSub } from '../../../agent/mesh/gossip.ts'
import { Host, type HostOptions } from '../../../agent/mesh/host.ts'
import { Keeper } from '../../../agent/mesh/keeper.ts'
import { PeerBook } from '../../../agent/mesh/peer-book.ts'
import type { Database } from '../../../agent/state/database.ts'
import { openGate } from '../../open-gate.ts'

export const quiet = pino({ level: 'silent' })
export const LOOPBACK = '/ip4/127.0.0.1/tcp/0'

/** On loopback, behind a gate of the open network. */
export async function startHost(options: Partial<HostOptions> & { key?: NodeKey } = {}): Promise<Host> {
  const host = await Host.start(hostOptions(options))
  onTestFinished(() => host[Symbol.asyncDispose]())
  return host
}

function hostOptions({ key = ephemeralNodeKey(), ...rest }: Partial<HostOptions> & { key?: NodeKey }): HostOptions {
  return { key, gate: openGate(key), open: true, listen: [LOOPBACK], mdns: false, log: quiet, ...rest }
}

export type Node = { host: Host; keeper: Keeper; book: PeerBook; stop(): Promise<void> }
export type NodeOptions = Partial<HostOptions> & {
  bootstrap?: string[]
  maxPeers?: number
  db?: Database
  key?: NodeKey
  /** Whom the keeper wants however many others are connected. */
  wants?: (peerId: string) => boolean
}

/** A host with its keeper. */
export async function startNode(options: NodeOptions = {}): Promise<Node> {
  const { bootstrap = [], maxPeers = 24, db = memoryDatabase(), wants = () => false, ...rest } = options
  const host = await Host.start(hostOptions({ ...rest, maxPeers }))
  const book = new PeerBook(db)
  const keeper = Keeper.start({ host, book, bootstrap, maxPeers, wants, log: quiet })
  let stopped: Promise<void> | undefined
  const stop = () => {
    stopped ??= keeper[Symbol.asyncDispose]().then(() => host[Symbol.asyncDispose]())
    return stopped
  }
  onTestFinished(stop)
  return { host, keeper, book, stop }
}

/** Gossip of a host's open network. */
export function pubsubOf({ pubsub }: Host): PubSub {
  if (pubsub === undefined) throw new Error('this host takes no part in the open network')
  return pubsub
}

export function addressesOf(host: Host): Multiaddr[] {
  return host.addresses().map((address) => multiaddr(address))
}

/** Dials `to` from `from`. */
export async function join(from: Host, to: Host): Promise<void> {
  await from.dial(addressesOf(to), AbortSignal.timeout(5_000))
}

/** Waits until the condition holds; fails with what was seen last. */
export async function until(what: string, condition: () => boolean | Promise<boolean>, ms = 10_000): Promise<void> {
  const endMs = performance.now() + ms
  while (!(await condition())) {
    if (performance.now() > endMs) throw new Error(`not within ${ms} ms: ${what}`)
    await delay(20)
  }
}

/** A TCP proxy to a local port whose wire can be cut: nothing passes any more, and nobody is told. */
export async function lay(port: number): Promise<{ port: number; cut(): void }> {
  const ends: Socket[] = []
  let isCut = false
  const server = createServer((near) => {
    const far = connect(port, '127.0.0.1')
    ends.push(near, far)
    for (const [from, to] of [
      [near, far],
      [far, near],
    ] as const) {
      from.on('data', (bytes) => void (isCut || to.write(bytes)))
      from.on('error', () => undefined)
      from.on('close', () => void (isCut || to.destroy()))
    }
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  onTestFinished(() => {
    server.close()
    for (const end of ends) end.destroy()
  })
  return {
    port: (server.address() as AddressInfo).port,
    cut: () => {
      isCut = true
    },
  }
}

export function memoryDatabase(): Database {
  const db = new DatabaseSync(':memory:')
  db.exec('CREATE TABLE schema_versions (part TEXT PRIMARY KEY, version INTEGER NOT NULL) STRICT')
  return db
}

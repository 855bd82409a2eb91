/**
 * Names as addresses of this machine: whoever connects to the address of `web.home.internal`, at the port of the service, gets a tunnel to it.
 *
 * A name is listened for once a program of this machine has asked for its address, and as long as it is used: a listener keeps others from
 * that port on all addresses (bind to 0.0.0.0 fails), so members must not be able to take ports here by offering something. What was in use
 * before a restart is listened for again. Where this node itself offers the service at the same port, the name is the application's own
 * address: a listener would stand in its way when it starts.
 *
 * Any program of this machine may connect, as any may use the agent's other ways in; grants are for nodes.
 */
import { createSocket, type Socket as UdpSocket } from 'node:dgram'
import { createServer, type Server, type Socket } from 'node:net'
import { AgentError, reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import { DatagramFlows } from './datagram-flows.ts'
import type { Target, TunnelDialer } from './dialer.ts'
import { nameOf, normalName, TOP } from './internal-names.ts'
import type { NameAddresses } from './name-addresses.ts'
import type { Resolved, ServiceNames } from './services.ts'
import { splice } from './splice.ts'

/** Since it was asked for or connected to: programs keep an address for longer than its TTL. */
const HOLD_MS = 60 * 60_000
const SWEEP_MS = 60_000
/** Not with each question: it is written to the disk. */
const NOTE_EVERY_MS = 5 * 60_000
/** File descriptors. What is beyond can still be had through the proxy. */
const LISTENERS_MAX = 1_024
/** Of all names together. */
const CONNECTIONS_MAX = 2_048
/** To open a tunnel, with all instances that are tried. */
const DIAL_MS_MAX = 30_000
/** Where URLs without a port lead; services of the proto `http` are listened for there too, where this user may. */
const HTTP_PORT = 80

type Listener = AsyncDisposable & { readonly port: number; readonly isUdp: boolean }
type Fault = { port: number; code: 'used' | 'privileged' | 'failed'; reason: string }
/** A name that is listened for. */
type Entry = {
  readonly name: string
  readonly target: Target
  readonly address: string
  listeners: Map<string, Listener>
  faults: Fault[]
  usedMs: number
  /** As it was written down. */
  notedMs: number
  open: number
}

export type Held = { address: string } | { fault: string }

type Init = {
  addresses: NameAddresses
  services: ServiceNames
  dialer: TunnelDialer
  /** The address that an application listens on when this node offers the service itself, on this machine and at that port. */
  ownHost: (network: string, service: string, port: number) => string | undefined
  now?: () => number
  log: Log
}

export class NameListeners implements AsyncDisposable {
  readonly #init: Init
  readonly #now: () => number
  readonly #entries = new Map<string, Entry>()
  readonly #stopping = new AbortController()
  readonly #sockets = new Set<Socket>()
  readonly #forget: () => void
  readonly #sweeper: NodeJS.Timeout
  #isFollowing = false
  /** Listeners come and go one after the other. */
  #work: Promise<unknown> = Promise.resolve()

  private constructor(init: Init) {
    this.#init = init
    this.#now = init.now ?? Date.now
    this.#forget = init.services.onChange(() => this.#followSoon())
    this.#sweeper = setInterval(() => void this.#inTurn(() => this.#sweep()), SWEEP_MS).unref()
  }

  static start(init: Init): NameListeners {
    const listeners = new NameListeners(init)
    listeners.#followSoon()
    return listeners
  }

  /** The address of a name, listened on from now on; undefined when no member offers it. */
  async hold(text: string): Promise<Held | undefined> {
    const resolved = this.#resolve(text)
    if (resolved === undefined) return undefined
    const own = this.#ownAddress(resolved)
    if (own !== undefined) return { address: own }
    const name = nameOf(resolved)
    const known = this.#entries.get(name)
    const entry = known ?? (await this.#inTurn(() => this.#add(name, resolved, this.#now())))
    if (entry === undefined) return { fault: `more than ${LISTENERS_MAX} names are in use; the proxy leads to it` }
    this.#use(entry)
    // What stood in the way may have ended.
    if (known !== undefined && entry.faults.length > 0) await this.#inTurn(() => this.#listen(entry, resolved))
    // Where somebody else answers, the address would lead to him.
    const fault = entry.faults.find(({ code }) => code === 'used' || entry.listeners.size === 0)
    return fault === undefined ? { address: entry.address } : { fault: fault.reason }
  }

  /** As people should know of them: names that are asked for and cannot be listened for. */
  faults(): { name: string; port: number; code: Fault['code']; reason: string }[] {
    return [...this.#entries.values()].flatMap(({ name, faults }) => faults.map((fault) => ({ name, ...fault })))
  }

  /** Names that are listened for now. */
  list(): { name: string; address: string; ports: number[]; connections: number }[] {
    return [...this.#entries.values()].map(({ name, address, listeners, open }) => ({
      name,
      address,
      ports: [...new Set([...listeners.values()].map(({ port }) => port))].sort((a, b) => a - b),
      connections: open,
    }))
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#forget()
    clearInterval(this.#sweeper)
    this.#stopping.abort()
    for (const socket of this.#sockets) socket.resetAndDestroy()
    await this.#work
    await Promise.all([...this.#entries.values()].map((entry) => this.#closeAll(entry)))
  }

  #inTurn<T>(work: () => Promise<T>): Promise<T | undefined> {
    const done = this.#work.then(async () => (this.#stopping.signal.aborted ? undefined : await work()))
    this.#work = done.catch((error: unknown) => this.#init.log.error({ err: error }, 'names.failed'))
    return done
  }

  #use(entry: Entry): void {
    entry.usedMs = this.#now()
    if (entry.usedMs - entry.notedMs < NOTE_EVERY_MS) return
    entry.notedMs = entry.usedMs
    this.#init.addresses.use(entry.name, entry.usedMs)
  }

  #resolve(text: string): Resolved | undefined {
    const name = normalName(text)
    return name?.endsWith(`.${TOP}`) ? this.#init.services.resolve(name) : undefined
  }

  #ownAddress({ network, service, instances }: Resolved): string | undefined {
    for (const { port } of instances) {
      const host = this.#init.ownHost(network, service, port)
      if (host !== undefined) return host
    }
    return undefined
  }

  async #add(name: string, resolved: Resolved, usedMs: number): Promise<Entry | undefined> {
    const known = this.#entries.get(name)
    if (known !== undefined) return known
    const count = [...this.#entries.values()].reduce((sum, { listeners }) => sum + listeners.size, 0)
    if (count >= LISTENERS_MAX) return undefined
    const { network, service, node } = resolved
    const target = { network, service, ...(node !== undefined && { node }) }
    const address = this.#init.addresses.use(name, usedMs)
    const entry: Entry = { name, target, address, listeners: new Map(), faults: [], usedMs, notedMs: usedMs, open: 0 }
    await this.#listen(entry, resolved)
    this.#entries.set(name, entry)
    return entry
  }

  /** Changes that come while one waits for its turn are seen then. */
  #followSoon(): void {
    if (this.#isFollowing) return
    this.#isFollowing = true
    void this.#inTurn(async () => {
      this.#isFollowing = false
      await this.#follow()
    })
  }

  /** Brings the listeners of names that were used lately in line with what is offered now. */
  async #follow(): Promise<void> {
    for (const { name, usedMs } of this.#init.addresses.usedSince(this.#now() - HOLD_MS)) {
      const resolved = this.#resolve(name)
      const entry = this.#entries.get(name)
      if (resolved === undefined || this.#ownAddress(resolved) !== undefined) {
        this.#entries.delete(name)
        if (entry !== undefined) await this.#closeAll(entry)
      } else if (entry !== undefined) await this.#listen(entry, resolved)
      else {
        // It is not used anew because the agent was started.
        await this.#add(name, resolved, usedMs)
      }
    }
  }

  async #sweep(): Promise<void> {
    for (const entry of this.#entries.values()) {
      if (entry.open > 0) this.#use(entry)
      if (entry.usedMs >= this.#now() - HOLD_MS) continue
      this.#entries.delete(entry.name)
      await this.#closeAll(entry)
    }
  }

  async #listen(entry: Entry, { instances }: Resolved): Promise<void> {
    const wanted = new Map<string, { port: number; isUdp: boolean; isExtra: boolean }>()
    for (const { port, proto } of instances) {
      const isUdp = proto === 'udp'
      wanted.set(`${isUdp ? 'udp' : 'tcp'} ${port}`, { port, isUdp, isExtra: false })
    }
    if (instances.some(({ proto }) => proto === 'http') && !wanted.has(`tcp ${HTTP_PORT}`))
      wanted.set(`tcp ${HTTP_PORT}`, { port: HTTP_PORT, isUdp: false, isExtra: true })
    for (const [key, listener] of entry.listeners) {
      if (wanted.has(key)) continue
      entry.listeners.delete(key)
      await listener[Symbol.asyncDispose]()
    }
    entry.faults = []
    for (const [key, { port, isUdp, isExtra }] of wanted) {
      if (entry.listeners.has(key)) continue
      try {
        entry.listeners.set(key, isUdp ? await this.#listenUdp(entry, port) : await this.#listenTcp(entry, port))
      } catch (error) {
        if (!isExtra) entry.faults.push(faultOf(entry.name, port, error))
      }
    }
  }

  async #closeAll({ listeners }: Entry): Promise<void> {
    const all = [...listeners.values()]
    listeners.clear()
    await Promise.all(all.map((listener) => listener[Symbol.asyncDispose]()))
  }

  async #listenTcp(entry: Entry, port: number): Promise<Listener> {
    const server = createServer({ allowHalfOpen: true, pauseOnConnect: true, noDelay: true }, (socket) => {
      void this.#accept(entry, socket)
    })
    await listening(server, () => server.listen({ host: entry.address, port, exclusive: true }))
    // A full table of files, say: the listener stays.
    server.on('error', (error) => this.#init.log.warn({ name: entry.name, reason: error.message }, 'names.accept'))
    const close = () => new Promise<void>((resolve) => server.close(() => resolve()))
    // Connections go on: only nobody new is let in.
    return { port, isUdp: false, [Symbol.asyncDispose]: async () => void close() }
  }

  async #accept(entry: Entry, socket: Socket): Promise<void> {
    const { log, dialer } = this.#init
    socket.on('error', () => undefined)
    if (this.#sockets.size >= CONNECTIONS_MAX) return void socket.resetAndDestroy()
    this.#sockets.add(socket)
    entry.open += 1
    this.#use(entry)
    const gone = new AbortController()
    socket.once('close', () => {
      this.#sockets.delete(socket)
      entry.open -= 1
      gone.abort()
    })
    try {
      const limits = [gone.signal, this.#stopping.signal, AbortSignal.timeout(DIAL_MS_MAX)]
      const tunnel = await dialer.open(entry.target, AbortSignal.any(limits))
      await splice(socket, tunnel)
    } catch (error) {
      if (!gone.signal.aborted) log.info({ name: entry.name, reason: reasonOf(error) }, 'names.refused')
      socket.resetAndDestroy()
    }
  }

  async #listenUdp(entry: Entry, port: number): Promise<Listener> {
    const { log, dialer } = this.#init
    const socket = createSocket('udp4')
    const flows = new DatagramFlows((error) => log.info({ name: entry.name, reason: error.message }, 'names.refused'))
    socket.on('message', (bytes, from) => {
      this.#use(entry)
      const open = (signal: AbortSignal) => dialer.openDatagrams(entry.target, signal)
      flows.send(`${from.address} ${from.port}`, bytes, open, (reply) => sendTo(socket, reply, from))
    })
    try {
      await listening(socket, () => socket.bind({ address: entry.address, port, exclusive: true }))
    } catch (error) {
      socket.close()
      throw error
    }
    socket.on('error', (error) => log.warn({ name: entry.name, reason: error.message }, 'names.accept'))
    const close = async () => {
      flows[Symbol.dispose]()
      socket.close()
    }
    return { port, isUdp: true, [Symbol.asyncDispose]: close }
  }
}

function sendTo(socket: UdpSocket, bytes: Uint8Array, to: { address: string; port: number }): void {
  try {
    // A program that has gone away is no error.
    socket.send(bytes, to.port, to.address, () => undefined)
  } catch {
    // Closed in between.
  }
}

function listening(server: Server | UdpSocket, begin: () => unknown): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once('error', reject)
    server.once('listening', () => {
      server.off('error', reject)
      resolve()
    })
    begin()
  })
}

function faultOf(name: string, port: number, error: unknown): Fault {
  const { code } = error as NodeJS.ErrnoException
  if (code === 'EADDRINUSE') {
    const reason = `port ${port} of ${name} is used by another program of this machine, on all addresses`
    return { port, code: 'used', reason }
  }
  if (code === 'EACCES') {
    const reason = `port ${port} of ${name} is below 1024, and this user may not listen there`
    return { port, code: 'privileged', reason }
  }
  if (error instanceof AgentError || code === undefined) throw error
  return { port, code: 'failed', reason: `port ${port} of ${name} cannot be listened on: ${reasonOf(error)}` }
}

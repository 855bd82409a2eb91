/**
 * Has members that a relay connects come through their routers, from start() until disposed: who tries with whom, when, and how often. How it is
 * done is in hole.ts; wire format and bounds: protocols/punch/spec.md.
 *
 * The relayed connection stays until the new one has proven itself (connections.ts). When a way through a hole dies, the peers are on a relay
 * again, as after any other connection, and it is tried anew.
 */
import type { Stream } from '@libp2p/interface'
import type { PunchRefusal } from '../../protocols/punch/punch.ts'
import { PUNCH_PROTOCOL } from '../../protocols/punch/punch.ts'
import { reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import { isPublicHost } from './addresses.ts'
import { isFirstToDial } from './admission.ts'
import type { Link } from './connections.ts'
import { answerHole, type Dug, type HoleDeps, openHole } from './hole.ts'
import type { Quic } from './quic.ts'

/** One attempt, with all its waiting. */
const ATTEMPT_MS_MAX = 25_000
const TICK_MS = 500
/** After a relay has connected two: a direct dial may still come through. */
const FIRST_MS = 1_000
const BACKOFF_FIRST_MS = 30_000
const BACKOFF_MAX_MS = 30 * 60_000
/** A way that lasted less is none. */
const LASTED_MS = 60_000
/** At once, both those that this node began and those that it was asked for: each may have 256 sockets open. */
const ATTEMPTS_MAX = 4
/** Between two attempts that one peer asks for. */
const ASKED_EVERY_MS = 10_000
/** Peers of whom something is remembered. */
const PEERS_MAX = 1_024

/** A part of the mesh that is one network. */
type PunchScope = {
  connected(): string[]
  openStream(peerId: string, protocol: string, signal: AbortSignal): Promise<Stream>
  handle(
    protocol: string,
    handler: (stream: Stream, peerId: string) => Promise<void> | void,
    options: { maxInboundStreams: number },
  ): Promise<void>
  unhandle(protocol: string): Promise<void>
}

export type PuncherOptions = {
  host: { readonly peerId: string; readonly quic: Quic | undefined; links(): Link[] }
  reflections: HoleDeps['reflections']
  /** Whether to do it at all. */
  isOn: boolean
  log: Log
  /** For tests. */
  mayReach?: HoleDeps['mayReach']
  now?: () => number
}

type Known = { dueMs: number; failures: number; askedMs: number; punchedMs: number | undefined }

export class Puncher implements AsyncDisposable {
  readonly #options: PuncherOptions
  readonly #now: () => number
  readonly #scopes = new Set<PunchScope>()
  readonly #known = new Map<string, Known>()
  /** Peers with whom it is being tried. */
  readonly #trying = new Map<string, Promise<void>>()
  readonly #stopping = new AbortController()
  readonly #timer: NodeJS.Timeout | undefined

  constructor(options: PuncherOptions) {
    this.#options = options
    this.#now = options.now ?? Date.now
    if (this.#deps !== undefined) this.#timer = setInterval(() => this.#tick(), TICK_MS).unref()
  }

  /** Makes holes with members of a network until disposed. */
  async serve(scope: PunchScope): Promise<AsyncDisposable> {
    await scope.handle(PUNCH_PROTOCOL, (stream, peerId) => this.#answer(stream, peerId), { maxInboundStreams: 1 })
    this.#scopes.add(scope)
    return {
      [Symbol.asyncDispose]: async () => {
        this.#scopes.delete(scope)
        await scope.unhandle(PUNCH_PROTOCOL)
      },
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    clearInterval(this.#timer)
    this.#stopping.abort(new Error('the agent is stopping'))
    await Promise.all(this.#trying.values())
  }

  /** Undefined where this node makes no holes. */
  get #deps(): HoleDeps | undefined {
    const { host, reflections, isOn, mayReach = isPublicHost } = this.#options
    return isOn && host.quic !== undefined ? { reflections, quic: host.quic, mayReach } : undefined
  }

  #tick(): void {
    const { host } = this.#options
    const nowMs = this.#now()
    const paths = new Map(host.links().map(({ peerId, path }) => [peerId, path]))
    for (const [peerId, known] of this.#known) this.#look(peerId, known, paths.get(peerId), nowMs)
    for (const scope of this.#scopes) {
      for (const peerId of scope.connected()) {
        if (paths.get(peerId) !== 'relay' || !isFirstToDial(host.peerId, peerId)) continue
        const known = this.#of(peerId, nowMs)
        if (known.dueMs > nowMs || this.#trying.has(peerId) || this.#trying.size >= ATTEMPTS_MAX) continue
        void this.#try(peerId, known, (deps, signal) =>
          openHole(peerId, () => scope.openStream(peerId, PUNCH_PROTOCOL, signal), deps, signal),
        )
      }
    }
  }

  /** A way that is gone again counts by how long it lasted. */
  #look(peerId: string, known: Known, path: Link['path'] | undefined, nowMs: number): void {
    if (known.punchedMs === undefined || path === 'punched' || this.#trying.has(peerId)) return
    if (nowMs - known.punchedMs < LASTED_MS) this.#failed(known)
    else known.failures = 0
    if (known.failures === 0) known.dueMs = nowMs + FIRST_MS
    known.punchedMs = undefined
  }

  async #answer(stream: Stream, peerId: string): Promise<void> {
    const nowMs = this.#now()
    const deps = this.#deps
    const known = this.#of(peerId, nowMs)
    const isRelayed = this.#options.host.links().some((link) => link.peerId === peerId && link.path === 'relay')
    let refusal: PunchRefusal | undefined
    if (deps === undefined || !isRelayed) refusal = 'off'
    else if (this.#trying.size >= ATTEMPTS_MAX || this.#trying.has(peerId) || nowMs - known.askedMs < ASKED_EVERY_MS)
      refusal = 'busy'
    if (deps === undefined || refusal !== undefined) {
      await answerHole(peerId, stream, NOTHING, AbortSignal.timeout(ATTEMPT_MS_MAX), refusal)
      return
    }
    known.askedMs = nowMs
    await this.#try(peerId, known, (own, signal) => answerHole(peerId, stream, own, signal))
  }

  /** Never rejects. */
  #try(peerId: string, known: Known, attempt: (deps: HoleDeps, signal: AbortSignal) => Promise<Dug>): Promise<void> {
    const deps = this.#deps
    if (deps === undefined) return Promise.resolve()
    const { log } = this.#options
    const startMs = performance.now()
    const tried = (async () => {
      const signal = AbortSignal.any([this.#stopping.signal, AbortSignal.timeout(ATTEMPT_MS_MAX)])
      let dug: Dug = 'failed'
      try {
        dug = await attempt(deps, signal)
      } catch (error) {
        log.debug({ peerId, reason: reasonOf(error) }, 'hole.failed')
      }
      const ms = Math.round(performance.now() - startMs)
      if (dug === 'punched') {
        known.punchedMs = this.#now()
        log.info({ peerId, ms }, 'hole.punched')
      } else {
        this.#failed(known)
        log.debug({ peerId, how: dug, ms }, 'hole.none')
      }
    })().finally(() => this.#trying.delete(peerId))
    this.#trying.set(peerId, tried)
    return tried
  }

  #failed(known: Known): void {
    const backoffMs = Math.min(BACKOFF_MAX_MS, BACKOFF_FIRST_MS * 2 ** Math.min(known.failures, 10))
    known.failures++
    known.dueMs = this.#now() + backoffMs * (1 + Math.random() / 2)
  }

  #of(peerId: string, nowMs: number): Known {
    let known = this.#known.get(peerId)
    if (known === undefined) {
      if (this.#known.size >= PEERS_MAX) this.#known.delete(this.#known.keys().next().value ?? '')
      known = { dueMs: nowMs + FIRST_MS, failures: 0, askedMs: Number.NEGATIVE_INFINITY, punchedMs: undefined }
      this.#known.set(peerId, known)
    }
    return known
  }
}

/** For an answer that is a refusal. */
const NOTHING: HoleDeps = {
  reflections: {
    askFrom: () => Promise.reject(new Error('nobody is asked')),
    quicFrom: () => Promise.reject(new Error('nobody is asked')),
  },
  quic: { dialPunched: () => Promise.reject(new Error('off')), listenPunched: () => Promise.reject(new Error('off')) },
  mayReach: () => false,
}

/**
 * Who has what, beyond the records of one network: this node's content ids are announced in the DHT, and others' holders found there.
 *
 * A provider record lies with the peers closest to the content id among those that were known when it was put; they keep it for 48 h.
 * So it is put again when the first peer appears, as the network fills up after that, and twice a day. Nothing here fails for lack of
 * peers: a node alone announces later, and finds nobody.
 */
import type { KadDHT } from '@libp2p/kad-dht'
import { CID } from 'multiformats/cid'
import { AgentError, reasonOf } from '../error.ts'
import type { Log } from '../log.ts'

/** A lookup and up to 20 messages each: a node with more than this must announce by record only. */
const PROVIDED_MAX = 10_000
/**
 * What was just published waits for this: its record is going to everybody just then, and announcing connects to up to twenty peers, which
 * is work for all of them.
 */
const ANNOUNCE_AFTER_MS = 3_000
/** At once. Each may connect to peers. */
const ANNOUNCING_MAX = 2
const ANNOUNCE_MS_MAX = 30_000
/** After the first peer connected: soon, and again as the DHT's table fills; then as below. */
const ROUNDS_MS = [1_500, 60_000, 10 * 60_000, 60 * 60_000]
/** Well within the 48 h that peers keep a record. */
const ROUND_EVERY_MS = 12 * 60 * 60_000

export type ProvidersOptions = {
  /** Undefined where this node takes no part in the open network: then nothing is announced, and nobody found. */
  dht: Pick<KadDHT, 'provide' | 'findProviders' | 'cancelReprovide'> | undefined
  host: { readonly peerId: string; connected(): string[]; onPeer(listener: () => void): () => void }
  log: Log
}

export class Providers implements AsyncDisposable {
  readonly #dht: ProvidersOptions['dht']
  readonly #host: ProvidersOptions['host']
  readonly #log: Log
  readonly #provided = new Map<string, CID>()
  /** Those that wait for ANNOUNCE_AFTER_MS, from the first one on. */
  readonly #fresh = new Set<string>()
  readonly #queue = new Set<string>()
  readonly #announcing = new Set<Promise<void>>()
  readonly #stopping = new AbortController()
  readonly #unlisten: () => void
  #timer: NodeJS.Timeout | undefined
  #freshTimer: NodeJS.Timeout | undefined
  #round = 0

  private constructor(options: ProvidersOptions) {
    this.#dht = options.dht
    this.#host = options.host
    this.#log = options.log
    this.#unlisten = options.host.onPeer(() => this.#arrive())
  }

  static start(options: ProvidersOptions): Providers {
    const providers = new Providers(options)
    if (options.host.connected().length > 0) providers.#arrive()
    return providers
  }

  /** Announces that this node holds what the CID names, soon and for as long as it runs. @throws {AgentError} `limit`, `usage` */
  provide(cid: string): void {
    const parsed = parse(cid)
    if (!this.#provided.has(cid) && this.#provided.size >= PROVIDED_MAX) {
      throw new AgentError('limit', `this node announces ${PROVIDED_MAX} artifacts already`, {
        next: 'Unpublish some first, or publish many paths as one artifact.',
      })
    }
    this.#provided.set(cid, parsed)
    this.#fresh.add(cid)
    this.#freshTimer ??= setTimeout(() => this.#announceFresh(), ANNOUNCE_AFTER_MS).unref()
  }

  /** Announces it no longer. What peers were told lasts up to 48 h; whoever asks us then is told that we do not have it. */
  withdraw(cid: string): void {
    const parsed = this.#provided.get(cid)
    this.#provided.delete(cid)
    this.#fresh.delete(cid)
    this.#queue.delete(cid)
    if (parsed === undefined || this.#dht === undefined) return
    this.#dht.cancelReprovide(parsed).catch((error: unknown) => {
      this.#log.debug({ cid, reason: reasonOf(error) }, 'provider.failed')
    })
  }

  /** Other nodes that announced it, as they are found; ends when the DHT knows no more. @throws {AgentError} `usage` */
  async *find(cid: string, signal: AbortSignal): AsyncGenerator<string> {
    const seen = new Set([this.#host.peerId])
    try {
      for await (const event of this.#dht?.findProviders(parse(cid), { signal }) ?? []) {
        if (event.name !== 'PROVIDER') continue
        for (const { id } of event.providers) {
          const peerId = id.toString()
          if (seen.has(peerId)) continue
          seen.add(peerId)
          yield peerId
        }
      }
    } catch (error) {
      if (error instanceof AgentError) throw error
      signal.throwIfAborted()
      this.#log.debug({ cid, reason: reasonOf(error) }, 'provider.failed')
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#unlisten()
    clearTimeout(this.#timer)
    clearTimeout(this.#freshTimer)
    this.#queue.clear()
    this.#stopping.abort()
    await Promise.all(this.#announcing)
  }

  /** A peer connected: begins the rounds, unless they run. */
  #arrive(): void {
    if (this.#timer !== undefined) return
    this.#timer = setTimeout(() => this.#announceAll(), ROUNDS_MS[0]).unref()
  }

  #announceFresh(): void {
    this.#freshTimer = undefined
    const fresh = [...this.#fresh]
    this.#fresh.clear()
    this.#enqueue(fresh)
  }

  #announceAll(): void {
    // Without a peer the rounds stop; the next one to connect begins them again.
    const alone = this.#host.connected().length === 0
    this.#round = alone ? 0 : this.#round + 1
    this.#timer = alone
      ? undefined
      : setTimeout(() => this.#announceAll(), ROUNDS_MS[this.#round] ?? ROUND_EVERY_MS).unref()
    this.#fresh.clear()
    this.#enqueue(this.#provided.keys())
  }

  #enqueue(cids: Iterable<string>): void {
    for (const cid of cids) this.#queue.add(cid)
    while (this.#announcing.size < ANNOUNCING_MAX && this.#queue.size > 0) {
      const work = this.#drain().finally(() => this.#announcing.delete(work))
      this.#announcing.add(work)
    }
  }

  async #drain(): Promise<void> {
    for (const cid of this.#queue) {
      this.#queue.delete(cid)
      const parsed = this.#provided.get(cid)
      if (parsed === undefined || this.#host.connected().length === 0) continue
      await this.#announce(parsed)
    }
  }

  async #announce(cid: CID): Promise<void> {
    const signal = AbortSignal.any([this.#stopping.signal, AbortSignal.timeout(ANNOUNCE_MS_MAX)])
    try {
      for await (const _ of this.#dht?.provide(cid, { signal }) ?? []) {
        // Its events tell of progress that nobody watches.
      }
    } catch (error) {
      this.#log.debug({ cid: cid.toString(), reason: reasonOf(error) }, 'provider.failed')
    }
  }
}

function parse(cid: string): CID {
  try {
    return CID.parse(cid)
  } catch (cause) {
    throw new AgentError('usage', `${cid} is not a content id: ${reasonOf(cause)}`, { cause })
  }
}

/**
 * Closures that peers publish: brings an artifact's manifest and signatures here, and keeps the decoded ones in memory, bounded.
 *
 * A peer that is slow or lies costs little, however many paths are asked for: each pair is fetched once at a time, whoever waits has a
 * deadline of his own, and what failed is not tried again for a while. Each network is tried by itself, so that a failure in one says nothing
 * of another; what is decoded is shared, since it is what its CIDs say whoever gave it.
 */
import {
  blobOf,
  type ClosureManifest,
  type ClosurePath,
  type Digest,
  decodeManifest,
  decodeSignatures,
  MANIFEST_BYTES_MAX,
  type NixArtifactBody,
} from '../../protocols/artifact/artifact.ts'
import { WireError } from '../../protocols/error.ts'
import type { BlobFetcher, BlobHolder } from '../content/content.ts'
import { AgentError } from '../error.ts'
import { isSignature, type SignedFacts } from './signing.ts'

/** A publisher that says nothing for so long gives way to the next: Nix waits for the narinfo, and not for long. */
const HASTE_MS = 400
/** Manifests are at most 4 MiB each: slower than this, and the next request may try another source. */
const LOAD_MS_MAX = 30_000
/** A failed load is answered from memory for so long: Nix asks for a closure's thousand paths one after the other. */
const RETRY_MS = 15_000
/** Paths of closures in memory; each takes about half a kilobyte. */
const PATHS_IN_MEMORY_MAX = 50_000
/** Loads that are under way or failed. What peers publish is not bounded by us. */
const PENDING_MAX = 256

/** A path of a closure that a peer publishes, as it says. */
export type PublishedPath = SignedFacts & { ca: string | undefined; signatures: readonly string[] }

/** A decoded manifest with its signatures. */
export class PublishedClosure {
  readonly pathCount: number
  readonly #paths: readonly ClosurePath[]
  readonly #signatures: readonly (readonly string[])[]
  readonly #indices: ReadonlyMap<string, number>

  constructor({ paths }: ClosureManifest, signatures: readonly (readonly string[])[]) {
    this.pathCount = paths.length
    this.#paths = paths
    this.#signatures = signatures
    this.#indices = new Map(paths.map(({ path }, at) => [hashPartOf(path), at]))
  }

  *paths(): Generator<PublishedPath> {
    for (const at of this.#paths.keys()) yield this.#at(at) as PublishedPath
  }

  byHashPart(hashPart: string): PublishedPath | undefined {
    return this.#at(this.#indices.get(hashPart) ?? -1)
  }

  #at(index: number): PublishedPath | undefined {
    const entry = this.#paths[index]
    if (!entry) return undefined
    return {
      path: entry.path,
      narHash: Buffer.from(entry.nar).toString('hex'),
      narSize: entry.sizeBytes,
      references: entry.references.map((at) => this.#paths[at]?.path ?? ''),
      ca: entry.ca,
      // Texts of a stranger, which go into lines of a narinfo.
      signatures: this.#signatures[index]?.filter(isSignature) ?? [],
    }
  }
}

export type Wanted = {
  body: Pick<NixArtifactBody, 'cid' | 'signatures'>
  /** The network in which it is published, by its id in hex. */
  network: string
  /** Peers of the network that may have the manifest, best first; called once for each blob. */
  sources: (signal: AbortSignal) => Iterable<string> | AsyncIterable<string>
}

type Pending = { loading: Promise<PublishedClosure>; since: number; failedAt: number | undefined }
type Deps = {
  blobs: Pick<BlobHolder, 'open'>
  fetcher: Pick<BlobFetcher, 'fetch'>
  /** For what there is no room to keep. */
  passThrough?: Pick<BlobFetcher, 'open'>
  now?: () => number
}

export class Closures implements AsyncDisposable {
  readonly #deps: Deps
  readonly #now: () => number
  readonly #stopping = new AbortController()
  /** By both CIDs, the one used last at the end. */
  readonly #loaded = new Map<string, PublishedClosure>()
  #pathsInMemory = 0
  /** By network and both CIDs. */
  readonly #pending = new Map<string, Pending>()

  constructor(deps: Deps) {
    this.#deps = deps
    this.#now = deps.now ?? (() => performance.now())
  }

  /** The closure, if it is in memory. */
  peek(body: Wanted['body']): PublishedClosure | undefined {
    const key = keyOf(body)
    const closure = this.#loaded.get(key)
    if (closure) {
      this.#loaded.delete(key)
      this.#loaded.set(key, closure)
    }
    return closure
  }

  /**
   * How long the load of this closure has been under way; Infinity when it failed a short while ago; 0 when it has not begun. Whoever
   * answers under a deadline does not wait for one that has had its time.
   */
  delayMs(wanted: Pick<Wanted, 'body' | 'network'>): number {
    const pending = this.#pending.get(pendingKeyOf(wanted))
    if (!pending) return 0
    if (pending.failedAt === undefined) return this.#now() - pending.since
    return this.#now() - pending.failedAt < RETRY_MS ? Number.POSITIVE_INFINITY : 0
  }

  /**
   * The closure, from memory, from the blob directory or from a peer. The load goes on when the signal fires, for whoever asks next.
   *
   * @throws {AgentError} as BlobFetcher.fetch; {WireError} `malformed` when the blobs are not what the record says they are.
   */
  async load(wanted: Wanted, signal: AbortSignal): Promise<PublishedClosure> {
    signal.throwIfAborted()
    const known = this.peek(wanted.body)
    if (known) return known
    const pending = this.#pending.get(pendingKeyOf(wanted))
    if (pending && (pending.failedAt === undefined || this.#now() - pending.failedAt < RETRY_MS)) {
      return until(pending.loading, signal)
    }
    return until(this.#start(wanted), signal)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopping.abort(new AgentError('cancelled', 'the agent is stopping'))
    await Promise.allSettled([...this.#pending.values()].map(({ loading }) => loading))
  }

  #start(wanted: Wanted): Promise<PublishedClosure> {
    const key = pendingKeyOf(wanted)
    this.#makeRoom()
    const loading = this.#fetch(wanted)
    const entry: Pending = { loading, since: this.#now(), failedAt: undefined }
    this.#pending.set(key, entry)
    loading.then(
      (closure) => {
        this.#pending.delete(key)
        this.#keep(keyOf(wanted.body), closure)
      },
      () => {
        entry.failedAt = this.#now()
      },
    )
    return loading
  }

  /** Forgets failures, the oldest first; when all are under way, the next one has to wait its turn. */
  #makeRoom(): void {
    if (this.#pending.size < PENDING_MAX) return
    for (const [key, { failedAt }] of this.#pending) {
      if (failedAt === undefined) continue
      this.#pending.delete(key)
      return
    }
    throw new AgentError('limit', `${PENDING_MAX} manifests are being fetched already`)
  }

  async #fetch(wanted: Wanted): Promise<PublishedClosure> {
    const { body } = wanted
    const signal = AbortSignal.any([this.#stopping.signal, AbortSignal.timeout(LOAD_MS_MAX)])
    const [manifestBytes, signatureBytes] = await Promise.all([
      this.#blob(blobOf(body.cid).digest, wanted, signal),
      this.#blob(blobOf(body.signatures).digest, wanted, signal),
    ])
    const manifest = decodeManifest(manifestBytes)
    if (manifest.type !== 'closure') throw new WireError('malformed', 'the manifest is not one of a closure')
    const signatures = decodeSignatures(signatureBytes)
    if (signatures.length !== manifest.paths.length) {
      throw new WireError('malformed', `${signatures.length} signatures for ${manifest.paths.length} paths`)
    }
    return new PublishedClosure(manifest, signatures)
  }

  async #blob(digest: Digest, { network, sources }: Wanted, signal: AbortSignal): Promise<Uint8Array> {
    const { fetcher, blobs, passThrough } = this.#deps
    const options = () => ({
      network,
      sources: sources(signal),
      signal,
      sizeBytesMax: MANIFEST_BYTES_MAX,
      hasteMs: HASTE_MS,
    })
    const source = await fetcher.fetch(digest, options()).then(
      () => blobs.open(digest),
      (error: unknown) => {
        if (passThrough === undefined || !(error instanceof AgentError) || error.code !== 'limit') throw error
        return passThrough.open(digest, options())
      },
    )
    if (!source) throw new AgentError('not-found', `the manifest ${digest} is gone already`)
    try {
      if (source.sizeBytes > MANIFEST_BYTES_MAX)
        throw new WireError('too-large', `a manifest of ${source.sizeBytes} bytes`)
      const chunks: Uint8Array[] = []
      for await (const chunk of source.read(0, source.sizeBytes, signal)) chunks.push(chunk)
      return Buffer.concat(chunks)
    } finally {
      await source.close?.()
    }
  }

  #keep(key: string, closure: PublishedClosure): void {
    // Two networks may have been asked at the same time.
    if (this.#loaded.has(key)) return
    this.#loaded.set(key, closure)
    this.#pathsInMemory += closure.pathCount
    for (const [oldest, { pathCount }] of this.#loaded) {
      if (this.#pathsInMemory <= PATHS_IN_MEMORY_MAX || oldest === key) break
      this.#loaded.delete(oldest)
      this.#pathsInMemory -= pathCount
    }
  }
}

function keyOf({ cid, signatures }: Wanted['body']): string {
  return `${cid.toString()} ${signatures.toString()}`
}

function pendingKeyOf({ body, network }: Pick<Wanted, 'body' | 'network'>): string {
  return `${network} ${keyOf(body)}`
}

/** The 32 characters before a store path's name. */
export function hashPartOf(path: string): string {
  const start = path.lastIndexOf('/') + 1
  return path.slice(start, start + 32)
}

/** What the promise becomes, unless the signal fires first. */
function until<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const onAbort = () => reject(signal.reason as Error)
    signal.addEventListener('abort', onAbort, { once: true })
    promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', onAbort))
  })
}

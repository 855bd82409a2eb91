/**
 * What a client pushes (`nix copy --to`): NARs and narinfos, checked before they are accepted, and published when the client pauses.
 *
 * A NAR is decompressed as it comes and kept under a temporary pin, until a narinfo says what it is. That is accepted when the NAR has the
 * hash and size that it says, all that it refers to can be had here, and somebody vouches for it: Nix on this machine, which has the same
 * path with the same contents, or signatures as the policy wants them. It is on disk for good then, and waits to be published.
 *
 * Nix sends what a path needs before the path, one by one, and never says that it has finished. So when nothing came for a while, what
 * waits is published: an artifact for each path that no other of them needs, with its whole closure. When a later path of the same copy
 * needs one of those, its own artifact takes the place of theirs. A path that this machine's Nix store has is shared from there, and its
 * NAR is not kept.
 */
import { randomUUID } from 'node:crypto'
import { type ClosureManifest, type Digest, NAME_LENGTH_MAX, PATHS_MAX } from '../../protocols/artifact/artifact.ts'
import { type BlobStore, TEMPORARY_PIN } from '../content/content.ts'
import { AgentError, reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import { publishPaths, type StorePathArtifact } from './closure.ts'
import { hashPartOf } from './closures.ts'
import type { HeldPaths } from './held-paths.ts'
import { type ForeignNarinfo, parseNarinfo } from './narinfo-read.ts'
import type { NixStore, PathInfo } from './nix-store.ts'
import { PendingNars, type UploadBlobs } from './pending-nars.ts'
import type { CacheKey, PublicKey } from './signing.ts'
import type { TrustedKeys } from './trust.ts'

/** Between two requests of one copy less time passes, unless a large NAR is being compressed: then what was published is replaced. */
const QUIET_MS = 1_000
/** For so long after the last request a path counts as one of the same copy. */
const COPY_MS = 120_000
/** What could not be published (the disk is full, the network is not running) is tried again after this. */
const RETRY_MS = 30_000
/** Of a pin: accepted, and not published yet. */
const PUSHED_PIN = 'pushed:'

/** Where something is published. */
export type PushPlace = {
  /** The network's. */
  readonly id: string
  readonly name: string
  publish(publication: {
    name: string
    body: StorePathArtifact['body']
    blobs: readonly Digest[]
    manifest: Pick<ClosureManifest, 'root' | 'paths'>
  }): unknown
  withdraw(name: string): unknown
}

export type PushesInit = {
  blobs: UploadBlobs & Pick<BlobStore, 'has' | 'unpin'>
  held: HeldPaths
  store: Pick<NixStore, 'directory' | 'info'>
  trust: Pick<TrustedKeys, 'judge'>
  /** Keys of members who may sign, by the network's id. */
  signersIn: (network: string) => readonly PublicKey[]
  key: Pick<CacheKey, 'sign' | 'publicKey'>
  /** What peers or caches upstream say of a path, if it can be had from them. */
  find: (hashPart: string, signal: AbortSignal) => Promise<PathInfo | undefined>
  /** Brings its NAR here. */
  bring: (info: PathInfo, signal: AbortSignal) => Promise<void>
  /** @throws {AgentError} when there is no such network, or none is named and there are several */
  place: (network: string | undefined) => PushPlace
  log: Log
  quietMs?: number
}

/** A copy that goes on, or ended a short while ago. */
type Copy = {
  place: PushPlace
  running: number
  timer: NodeJS.Timeout | undefined
  lastMs: number
  /** Published in it: the root, by the artifact's name. */
  roots: Map<string, string>
  publishing: Promise<void>
  failure: string | undefined
}

export class Pushes implements AsyncDisposable {
  readonly #init: PushesInit
  readonly #pending: PendingNars
  /** By network. */
  readonly #copies = new Map<string, Copy>()
  readonly #stopping = new AbortController()

  constructor(init: PushesInit) {
    this.#init = init
    this.#pending = new PendingNars(init.blobs)
  }

  /** Publishes what was accepted before the agent was stopped. */
  resume(): void {
    for (const network of this.#init.held.networks()) {
      try {
        this.#schedule(this.#copyTo(this.#init.place(network)))
      } catch (error) {
        this.#init.log.warn({ network, reason: reasonOf(error) }, 'push.unpublished')
      }
    }
  }

  /** @throws {AgentError} `usage`, `not-found`: see places.ts */
  place(network: string | undefined): PushPlace {
    return this.#init.place(network)
  }

  /** Why what was accepted is not published, by the network's name. */
  failures(): { network: string; paths: number; reason: string }[] {
    return [...this.#copies.values()].flatMap(({ place, failure }) =>
      failure === undefined
        ? []
        : [{ network: place.name, paths: this.#init.held.waiting(place.id).length, reason: failure }],
    )
  }

  /** The size of an uploaded file's NAR, if it was received in this network and its narinfo not yet. */
  sizeOfUpload(place: PushPlace, file: string): number | undefined {
    return this.#pending.get(place.id, file)?.sizeBytes
  }

  /**
   * Takes a NAR. `file` is its name, `<hash of the file>.nar.xz`.
   *
   * @throws {AgentError} `usage` for a name or compression that is not known, `corrupt` when the file has another hash, `limit`
   */
  async putNar(place: PushPlace, file: string, chunks: AsyncIterable<Uint8Array>, signal: AbortSignal): Promise<void> {
    using _busy = this.#busy(place)
    await this.#pending.take(place.id, file, chunks, signal)
  }

  /**
   * Takes a narinfo, and with it the NAR that was sent before.
   *
   * @throws {AgentError} `corrupt`, `usage` when it does not fit what was sent, `not-allowed` when nobody vouches for it
   */
  async putNarinfo(place: PushPlace, hashPart: string, text: string, signal: AbortSignal): Promise<void> {
    using _busy = this.#busy(place)
    const said = parseNarinfo(text, this.#init.store.directory)
    if (hashPartOf(said.path) !== hashPart)
      throw new AgentError('usage', `the narinfo of ${hashPart} is one of ${said.path}`)
    const { held, blobs, log } = this.#init
    const file = fileOf(said.url)
    const upload = this.#pending.claim(place.id, file)
    let info: PathInfo
    try {
      if (said.narHash !== upload.digest || said.narSize !== upload.sizeBytes) {
        const sent = `${upload.sizeBytes} bytes with the hash sha256:${upload.digest}`
        throw new AgentError('corrupt', `${said.path}: what was sent as ${file} is ${sent}, not what the narinfo says`)
      }
      await this.#checkReferences(said, signal)
      info = this.#accepted(said, place)
      if (!this.#isInStore(info)) blobs.pin(info.narHash, `${PUSHED_PIN}${place.id}`)
      held.put(info, place.id)
    } finally {
      // It is kept for another reason by now, or refused.
      this.#pending.done(place.id, file)
    }
    log.info({ path: info.path, network: place.name, sizeBytes: info.narSize }, 'push.accepted')
  }

  /** A path that was pushed for the network and waits to be published. */
  waiting(place: PushPlace, hashPart: string): PathInfo | undefined {
    const info = this.#init.held.byHashPart(hashPart)
    return info && this.#init.held.isWaiting(place.id, info.path) && this.#isHere(info) ? info : undefined
  }

  /** Resolves when all that waits for this network was published, or could not be. For tests. */
  async settled(place: Pick<PushPlace, 'id'>): Promise<void> {
    const copy = this.#copies.get(place.id)
    if (copy === undefined) return
    clearTimeout(copy.timer)
    this.#publishSoon(copy)
    await copy.publishing
  }

  /** What waits is published at the next start. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#stopping.abort(new AgentError('cancelled', 'the agent is stopping'))
    for (const { timer } of this.#copies.values()) clearTimeout(timer)
    await Promise.all([...this.#copies.values()].map(({ publishing }) => publishing))
    this.#pending[Symbol.dispose]()
  }

  /** The path as it is accepted: with the signature of this agent's key where Nix on this machine vouches for it. */
  #accepted(said: ForeignNarinfo, place: PushPlace): PathInfo {
    const { store, trust, key, signersIn } = this.#init
    const { path, narHash, narSize, references, deriver } = said
    const facts = { path, narHash, narSize, references: [...references] }
    const valid = store.info(path)
    if (valid?.narHash === narHash && valid.references.join() === references.join()) {
      const signatures = [...new Set([key.sign(facts), ...valid.signatures, ...said.signatures])]
      return { ...facts, signatures, ca: valid.ca, deriver, ultimate: false }
    }
    const verdict = trust.judge(said, said.signatures)
    if (verdict.ok) return { ...facts, signatures: [...said.signatures], ca: verdict.ca, deriver, ultimate: false }
    // Where it is read later, nobody asks for which network it was pushed.
    const { ok, ca } = { ca: undefined, ...trust.judge(said, said.signatures, signersIn(place.id)) }
    if (ok) return { ...facts, signatures: [key.sign(facts), ...said.signatures], ca, deriver, ultimate: false }
    throw new AgentError(
      'not-allowed',
      `${path} is refused: ${verdict.reason}, and it is not in the store of this machine`,
      {
        next: 'Sign it with a key that this agent trusts (`nix store sign`, or secret-key=FILE in the URL; `agent trust list`), or have it in the store of this machine.',
      },
    )
  }

  async #checkReferences({ path, references }: ForeignNarinfo, signal: AbortSignal): Promise<void> {
    for (const reference of references) {
      if (reference === path || this.#info(reference)) continue
      if (await this.#init.find(hashPartOf(reference), signal)) continue
      throw new AgentError('usage', `${path} refers to ${reference}, which is neither here nor at any peer`, {
        next: 'Push it first: `nix copy` does by itself.',
      })
    }
  }

  /** What is known of a path whose NAR is here. */
  #info(path: string): PathInfo | undefined {
    const { held, store } = this.#init
    const info = held.info(path)
    return info && this.#isHere(info) ? info : store.info(path)
  }

  #isHere(info: PathInfo): boolean {
    return this.#init.blobs.has(info.narHash) || this.#isInStore(info)
  }

  #isInStore({ path, narHash }: PathInfo): boolean {
    return this.#init.store.info(path)?.narHash === narHash
  }

  /** What nobody else keeps goes. */
  #release(pin: string): void {
    this.#init.blobs.setPins(pin, [])
  }

  #copyTo(place: PushPlace): Copy {
    const known = this.#copies.get(place.id)
    const copy = known ?? {
      place,
      running: 0,
      timer: undefined,
      lastMs: performance.now(),
      roots: new Map(),
      publishing: Promise.resolve(),
      failure: undefined,
    }
    copy.place = place
    if (performance.now() - copy.lastMs > COPY_MS) copy.roots.clear()
    this.#copies.set(place.id, copy)
    return copy
  }

  /** A request of a copy runs until this is disposed. */
  #busy(place: PushPlace): Disposable {
    const copy = this.#copyTo(place)
    copy.running++
    clearTimeout(copy.timer)
    return {
      [Symbol.dispose]: () => {
        copy.running--
        copy.lastMs = performance.now()
        if (copy.running === 0) this.#schedule(copy)
      },
    }
  }

  #schedule(copy: Copy, ms = this.#init.quietMs ?? QUIET_MS): void {
    clearTimeout(copy.timer)
    if (this.#stopping.signal.aborted) return
    copy.timer = setTimeout(() => this.#publishSoon(copy), ms).unref()
  }

  #publishSoon(copy: Copy): void {
    copy.publishing = copy.publishing.then(() => this.#publish(copy))
  }

  /** Never fails. */
  async #publish(copy: Copy): Promise<void> {
    const { held, log } = this.#init
    copy.failure = undefined
    for (const root of this.#rootsOf(copy.place)) {
      if (this.#stopping.signal.aborted) return
      try {
        await this.#publishRoot(copy, root)
      } catch (error) {
        if (this.#stopping.signal.aborted) return
        copy.failure = reasonOf(error)
        log.warn({ path: root, network: copy.place.name, reason: copy.failure }, 'push.unpublished')
      }
    }
    if (copy.failure !== undefined && held.waiting(copy.place.id).length > 0) this.#schedule(copy, RETRY_MS)
  }

  /** Of what waits, the paths that no other of it needs. */
  #rootsOf({ id }: PushPlace): string[] {
    const { held } = this.#init
    const waiting = held.waiting(id)
    const infos = waiting.flatMap((path) => held.info(path) ?? [])
    const needed = new Set(infos.flatMap(({ path, references }) => references.filter((one) => one !== path)))
    return waiting.filter((path) => !needed.has(path))
  }

  async #publishRoot({ place, roots }: Copy, root: string): Promise<void> {
    const { blobs, held, key, log } = this.#init
    const infos = await this.#closure(root)
    const name = nameOfArtifact(root)
    const pin = `${TEMPORARY_PIN}${randomUUID()}`
    try {
      const options = { name, pin, signal: this.#stopping.signal }
      const { body, manifest, blobs: made } = await publishPaths(root, infos, options, { key, blobs })
      const kept = infos.filter((info) => !this.#isInStore(info)).map(({ narHash }) => narHash)
      const inStore = new Set(infos.filter((info) => this.#isInStore(info)).map(({ path }) => path))
      const paths = manifest.paths.filter(({ path }) => inStore.has(path))
      const shared = { root: paths.findIndex(({ path }) => path === root), paths }
      place.publish({ name, body, blobs: [made.manifest, made.signatures, ...kept], manifest: shared })
    } finally {
      this.#release(pin)
    }
    const waiting = new Set(held.waiting(place.id))
    const settled = infos.filter(({ path }) => waiting.has(path))
    held.settle(
      place.id,
      settled.map(({ path }) => path),
    )
    for (const { narHash } of settled) blobs.unpin(narHash, `${PUSHED_PIN}${place.id}`)
    const covered = new Set(infos.map(({ path }) => path))
    for (const [earlier, path] of roots) {
      if (path === root || !covered.has(path)) continue
      roots.delete(earlier)
      place.withdraw(earlier)
    }
    roots.set(name, root)
    log.info({ path: root, network: place.name, paths: infos.length }, 'push.published')
  }

  /** All that a path needs, itself included, sorted; what is not here is brought. */
  async #closure(root: string): Promise<PathInfo[]> {
    const { signal } = this.#stopping
    const found = new Map<string, PathInfo>()
    const wanted = [root]
    for (let path = wanted.pop(); path !== undefined; path = wanted.pop()) {
      if (found.has(path)) continue
      if (found.size >= PATHS_MAX)
        throw new AgentError('limit', `the closure of ${root} has more than ${PATHS_MAX} paths`)
      const info = this.#info(path) ?? (await this.#brought(path, signal))
      found.set(path, info)
      wanted.push(...info.references)
    }
    return [...found.values()].sort((one, other) => (one.path < other.path ? -1 : 1))
  }

  async #brought(path: string, signal: AbortSignal): Promise<PathInfo> {
    const info = await this.#init.find(hashPartOf(path), signal)
    if (!info) throw new AgentError('not-found', `${path}, which it needs, cannot be had any more`)
    await this.#init.bring(info, signal)
    this.#init.held.put(info)
    return info
  }
}

/** @throws {AgentError} `usage` */
function fileOf(url: string): string {
  const [, file] = /^nar\/([0-9A-Za-z.]+)$/.exec(url) ?? []
  if (file !== undefined) return file
  throw new AgentError('usage', `its NAR is at ${url.slice(0, 100)}, where nothing was sent`)
}

/** Unlike those of `agent publish`, names of what is pushed have the hash in them: a cache keeps each version until it is withdrawn. */
function nameOfArtifact(path: string): string {
  return path.slice(path.lastIndexOf('/') + 1).slice(0, NAME_LENGTH_MAX)
}

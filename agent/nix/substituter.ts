/**
 * Answers the local Nix: which store paths can be had, and their NARs. In this order: what this node publishes itself, from the store;
 * what was pushed here, or came from a cache upstream; what peers publish, by the prefixes in their records, and what is in their stores,
 * by their filters; what caches upstream have; nothing, at once.
 *
 * A path of a peer is answered for only when its signature is by a key that this agent trusts, or when its name follows from its
 * contents. It is then signed with the agent's own key, the one that nix.conf has to trust. Who publishes something else is told of by
 * `onFault`, and the next publisher is asked.
 *
 * What is asked of peers is asked in the network whose record named them. Where a path is published in several, each is tried by itself,
 * and what was fetched for one is not given on in another: see fetcher.ts. The local Nix may read everything that is here.
 *
 * Nix fails a whole command when a narinfo stalls, so `narinfo` answers within ANSWER_MS_MAX whatever the peers do.
 */
import { setImmediate as nextTurn } from 'node:timers/promises'
import type { Digest, NixArtifactBody } from '../../protocols/artifact/artifact.ts'
import { WireError } from '../../protocols/error.ts'
import type { Holder } from '../catalog/filters.ts'
import type { BlobFetcher, BlobSource, BlobStore, FetchOptions } from '../content/content.ts'
import { AgentError, reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import { type Answered, AnsweredNars, type Wanted } from './answered-nars.ts'
import { checkedSource } from './checked-source.ts'
import { type Closures, hashPartOf, type PublishedClosure, type PublishedPath } from './closures.ts'
import type { HeldPaths } from './held-paths.ts'
import { narPeers, networksOf, type Sources } from './nar-peers.ts'
import type { NarSource } from './nar-source.ts'
import type { Narinfo } from './narinfo.ts'
import type { NixStore } from './nix-store.ts'
import {
  type Candidate,
  type Fault,
  faultOf,
  type PathFault,
  PathFaults,
  type Teller,
  tellerOf,
} from './path-faults.ts'
import { Prefetch } from './prefetch.ts'
import type { CacheKey, PublicKey, SignedFacts } from './signing.ts'
import type { StorePeers } from './store-peers.ts'
import type { TrustedKeys, Verdict } from './trust.ts'
import type { Upstreams } from './upstreams.ts'

/** Of the 2 s that the local Nix may have to wait, what the peers get. */
const ANSWER_MS_MAX = 1_500
/** For a NAR there is more time: Nix had its narinfo before, and a NAR that is not found fails the whole command. */
const FOUND_MS_MAX = 10_000
/** A person who looks at an artifact waits for its publisher. */
const SHOWN_MS_MAX = 1_000
/** Publishers asked about one path in one network: the more there are, the likelier it is that one of the first will do. */
const CANDIDATES_MAX = 16
/** A NAR up to this size is verified as a whole before its first byte is handed out; a larger one as it arrives, all but the last piece. */
const WHOLE_BYTES_MAX = 256 * 1024 * 1024
/** Signatures checked before the event loop has its turn: about 5 ms. */
const JUDGED_AT_ONCE = 32

type Deps = {
  store: Pick<NixStore, 'directory'>
  published: Pick<NarSource, 'byHashPart' | 'open'>
  closures: Pick<Closures, 'peek' | 'load' | 'delayMs'>
  key: Pick<CacheKey, 'sign'>
  trust: Pick<TrustedKeys, 'judge' | 'has'>
  blobs: Pick<BlobStore, 'open' | 'has'>
  held: Pick<HeldPaths, 'byHashPart'>
  fetcher: BlobFetcher
  upstreams: Pick<Upstreams, 'find' | 'fetch'>
  /** For what there is no room to keep. */
  passThrough?: Pick<BlobFetcher, 'open'>
  /** Told what a blob is that is about to be fetched. */
  named?(digest: Digest, path: string): void
  /** Artifacts of other nodes whose prefixes have this hash part. In memory: called for every path that Nix asks for. */
  candidates(hashPart: string): readonly Candidate[]
  /** Peers who give out their Nix stores. */
  stores?: Pick<StorePeers, 'holders' | 'find'>
  sources: Sources
  /** Keys of members whom the policy of a network lets sign what this node believes. */
  signersIn: (network: string) => readonly PublicKey[]
  onFault: (fault: PathFault) => void
  /** What became of a NAR that the local Nix asked for and peers had to give; the reason names them. */
  onFetched(path: string, failure: string | undefined): void
  log: Log
  now?: () => number
  /** WHOLE_BYTES_MAX, smaller for a test. */
  wholeBytesMax?: number
}

/** A narinfo, or why there is none: reasons that name a peer each, none when nobody publishes the path. */
export type Answer = { narinfo: Narinfo; refusals?: undefined } | { narinfo?: undefined; refusals: readonly string[] }

export class Substituter implements AsyncDisposable {
  readonly #deps: Deps
  readonly #wholeBytesMax: number
  readonly #prefetch: Prefetch
  readonly #answered: AnsweredNars
  readonly #faults: PathFaults
  #hits = 0
  #misses = 0

  constructor(deps: Deps) {
    this.#deps = deps
    const now = deps.now ?? (() => performance.now())
    this.#answered = new AnsweredNars(now)
    this.#faults = new PathFaults(deps.onFault, now, deps.log)
    this.#wholeBytesMax = deps.wholeBytesMax ?? WHOLE_BYTES_MAX
    this.#prefetch = new Prefetch((...next) => this.#fetchAhead(...next))
  }

  /** Narinfos asked for: answered, and not. */
  get counts(): { hits: number; misses: number } {
    return { hits: this.#hits, misses: this.#misses }
  }

  /** The store path of a NAR that was answered for, to name it when a peer lied about its bytes. */
  pathOf(digest: Digest): string | undefined {
    return this.#answered.get(digest)?.path
  }

  /** Answers for a store path by its hash part, and begins to fetch its NAR. Rejects only when the signal fires. */
  async narinfo(hashPart: string, signal: AbortSignal): Promise<Answer> {
    const answer = await this.#find(hashPart, signal)
    if (answer.narinfo) this.#hits++
    else this.#misses++
    return answer
  }

  /** The size of a NAR; undefined when nobody has it. `hashPart` is that of its path, if the request says. */
  async narSize(digest: Digest, hashPart: string | undefined, signal: AbortSignal): Promise<number | undefined> {
    const here = (await this.#deps.published.open(digest)) ?? (await this.#deps.blobs.open(digest))
    if (!here) return (await this.#answeredFor(digest, hashPart, signal))?.sizeBytes
    await here.close?.()
    return here.sizeBytes
  }

  /** A NAR, from here or from peers; undefined when nobody gives it. The caller closes it. Rejects only when the signal fires. */
  async openNar(digest: Digest, hashPart: string | undefined, signal: AbortSignal): Promise<BlobSource | undefined> {
    const own = await this.#deps.published.open(digest)
    const here = own ?? (await this.#deps.blobs.open(digest))
    if (here) {
      this.#prefetch.claim(digest, here.sizeBytes)
      return own === undefined && this.#answered.isFresh(digest) ? here : checkedSource(digest, here)
    }
    const answered = await this.#answeredFor(digest, hashPart, signal)
    if (!answered) return undefined
    const { path, sizeBytes } = answered
    // Paths of different names may have the same NAR, and other publishers.
    const wanted = { ...answered, hashPart: hashPart ?? answered.hashPart }
    this.#deps.named?.(digest, path)
    try {
      const kept = await this.#openKept(digest, wanted, signal).catch((error: unknown) =>
        this.#openUnkept(digest, wanted, error, signal),
      )
      if (sizeBytes <= this.#wholeBytesMax) this.#deps.onFetched(path, undefined)
      return kept
    } catch (error) {
      signal.throwIfAborted()
      this.#deps.log.warn({ path, reason: reasonOf(error) }, 'nix.nar-failed')
      // Of lies the fetcher has told already.
      if (!(error instanceof AgentError) || error.code !== 'corrupt') this.#deps.onFetched(path, reasonOf(error))
      return undefined
    }
  }

  /** Fetched, and kept for the next who asks. */
  async #openKept(digest: Digest, wanted: Answered, signal: AbortSignal): Promise<BlobSource | undefined> {
    const { fetcher, blobs } = this.#deps
    if (wanted.sizeBytes > this.#wholeBytesMax && wanted.network !== undefined)
      return await this.#inEachNetwork(wanted, signal, (options) => fetcher.open(digest, options))
    const fetching = this.#fetchHere(digest, wanted, signal)
    this.#prefetch.claim(digest, wanted.sizeBytes)
    await fetching
    return await blobs.open(digest)
  }

  /** Handed on without being kept, if that there is no room is all that was wrong. */
  async #openUnkept(digest: Digest, wanted: Answered, error: unknown, signal: AbortSignal): Promise<BlobSource> {
    const { passThrough } = this.#deps
    const isFull = error instanceof AgentError && error.code === 'limit'
    if (passThrough === undefined || wanted.network === undefined || !isFull) throw error
    return await this.#inEachNetwork(wanted, signal, (options) => passThrough.open(digest, options))
  }

  /**
   * Resolves when some publisher of this closure in the network has it signed, every path of it, so that it is to be believed here. For
   * whoever names an artifact by the name that a publisher gave it: a CID would say itself what it names.
   *
   * @throws {AgentError} `not-allowed` (nobody who is trusted signed it), `corrupt` (forged), or `not-found`; the message names publishers.
   */
  async vouch(body: Pick<NixArtifactBody, 'cid' | 'root'>, network: string, signal: AbortSignal): Promise<void> {
    const all = this.#ranked(
      hashPartOf(body.root),
      (candidate) => candidate.network === network && candidate.body.cid.equals(body.cid),
    )
    const refusals: string[] = []
    const faults: Fault[] = []
    for (const candidate of all) {
      const closure = await this.#load(candidate, all, signal, refusals)
      signal.throwIfAborted()
      const fault = closure && (await this.#faultIn(candidate, closure))
      if (closure && !fault) return
      if (!fault) continue
      this.#faults.tell(tellerOf(candidate), fault, refusals)
      faults.push(fault)
    }
    const [first] = faults
    const code = first === undefined ? 'not-found' : first.code === 'untrusted' ? 'not-allowed' : 'corrupt'
    throw new AgentError(code, `${body.root} is refused: ${refusals.join('; ') || 'nobody publishes it any more'}`, {
      next: [first?.next, `To get it all the same, name it by its CID: ${body.cid.toString()}`]
        .filter(Boolean)
        .join(' '),
    })
  }

  /** Why the local Nix is not given the root of what is published; undefined when it would be, or it is not known soon. */
  async refusal(candidate: Candidate): Promise<string | undefined> {
    const closure = await this.#load(candidate, [candidate], AbortSignal.timeout(SHOWN_MS_MAX), [])
    const entry = closure?.byHashPart(hashPartOf(candidate.body.root))
    const verdict = entry && this.#verdictOn(entry, candidate.network)
    return verdict?.ok === false ? verdict.reason : undefined
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#prefetch[Symbol.asyncDispose]()
  }

  /** What is here of a path: published from the store, or a blob that was pushed or came from upstream, and is still to be believed. */
  local(hashPart: string): Narinfo | undefined {
    const own = this.#deps.published.byHashPart(hashPart)
    if (own) return { ...own, signatures: this.#signaturesOf(own, own.signatures) }
    const held = this.#deps.held.byHashPart(hashPart)
    if (!held || !this.#deps.blobs.has(held.narHash)) return undefined
    const verdict = this.#deps.trust.judge(held, held.signatures)
    if (!verdict.ok) return undefined
    const signatures = verdict.by === 'signature' ? this.#signaturesOf(held, held.signatures) : held.signatures
    return { ...held, signatures, ca: verdict.ca }
  }

  /** Brings a NAR here that peers or caches upstream have. @throws {AgentError} `not-found` */
  async bring({ path, narHash }: Pick<Narinfo, 'path' | 'narHash'>, signal: AbortSignal): Promise<void> {
    const source = await this.openNar(narHash, hashPartOf(path), signal)
    if (!source) throw new AgentError('not-found', `${path} cannot be had`)
    try {
      // What arrives while it is read is here when it was read.
      for await (const _ of source.read(0, source.sizeBytes, signal));
    } finally {
      await source.close?.()
    }
  }

  async #find(hashPart: string, signal: AbortSignal, msMax = ANSWER_MS_MAX): Promise<Answer> {
    const local = this.local(hashPart)
    if (local) return { narinfo: local }
    const candidates = this.#ranked(hashPart)
    const refusals: string[] = []
    const waiting: Candidate[] = []
    for (const candidate of candidates) {
      const closure = this.#deps.closures.peek(candidate.body)
      if (!closure) {
        waiting.push(candidate)
        continue
      }
      const narinfo = this.#judge(tellerOf(candidate), closure.byHashPart(hashPart), hashPart, refusals)
      if (narinfo) return { narinfo }
    }
    const isWorthIt = waiting.length > 0 || this.#holders(hashPart).length > 0
    const slow = isWorthIt && (await this.#findSlowly(waiting, hashPart, refusals, signal, msMax))
    if (slow) return { narinfo: slow }
    const { info, refusals: others = [] } = await this.#deps.upstreams.find(hashPart, signal)
    if (!info) return { refusals: [...refusals, ...others] }
    this.#remember(info, hashPart, undefined)
    return { narinfo: { ...info, signatures: this.#signaturesOf(info, info.signatures) } }
  }

  /** Asks all that are worth waiting for at the same time; the first good answer is taken. */
  async #findSlowly(
    candidates: readonly Candidate[],
    hashPart: string,
    refusals: string[],
    signal: AbortSignal,
    msMax: number,
  ): Promise<Narinfo | undefined> {
    const deadline = AbortSignal.any([signal, AbortSignal.timeout(msMax)])
    const ask = async (candidate: Candidate) => {
      const closure = await this.#load(candidate, candidates, deadline, refusals)
      const narinfo = closure && this.#judge(tellerOf(candidate), closure.byHashPart(hashPart), hashPart, refusals)
      // To Promise.any only a rejection means: wait for the others.
      if (!narinfo) throw new AgentError('not-found', 'not from this one')
      return narinfo
    }
    const worthIt = candidates.filter((candidate) => this.#deps.closures.delayMs(candidate) < ANSWER_MS_MAX)
    const judge = (teller: Teller, entry: PublishedPath) => this.#judge(teller, entry, hashPart, refusals)
    const { stores } = this.#deps
    const asked = [...worthIt.map(ask), ...(stores ? [stores.find(hashPart, judge, deadline)] : [])]
    const narinfo = await Promise.any(asked).catch(() => undefined)
    signal.throwIfAborted()
    return narinfo
  }

  async #load(
    candidate: Candidate,
    others: readonly Candidate[],
    signal: AbortSignal,
    refusals: string[],
  ): Promise<PublishedClosure | undefined> {
    const { peerId, body, network } = candidate
    const same = others.filter((other) => other.network === network && other.body.cid.equals(body.cid))
    const sources = (loading: AbortSignal) =>
      narPeers({ candidates: [candidate, ...same] }, this.#deps.sources, loading)
    try {
      return await this.#deps.closures.load({ body, network, sources }, signal)
    } catch (error) {
      if (error instanceof WireError) {
        this.#faults.tell(
          tellerOf(candidate),
          { path: body.root, code: 'malformed', reason: error.message, next: undefined },
          refusals,
        )
      } else if (!signal.aborted) {
        refusals.push(`${peerId}: ${reasonOf(error)}`)
        this.#deps.log.debug({ peerId, path: body.root, reason: reasonOf(error) }, 'nix.manifest-failed')
      }
      return undefined
    }
  }

  /** What somebody says of the path, if it is to be believed. */
  #judge(teller: Teller, entry: PublishedPath | undefined, hashPart: string, refusals: string[]): Narinfo | undefined {
    // Prefixes are short, so a closure may turn out not to have the path; and a store elsewhere has other paths.
    if (!entry?.path.startsWith(`${this.#deps.store.directory}/`)) return undefined
    const verdict = this.#verdictOn(entry, teller.network)
    if (!verdict.ok) {
      this.#faults.tell(teller, faultOf(teller, entry, verdict), refusals)
      return undefined
    }
    this.#remember(entry, hashPart, teller.network)
    const signatures = verdict.by === 'signature' ? this.#signaturesOf(entry, entry.signatures) : entry.signatures
    return { ...entry, signatures, ca: verdict.ca }
  }

  /** The first reason not to believe a closure. */
  async #faultIn(candidate: Candidate, closure: PublishedClosure): Promise<Fault | undefined> {
    const { root } = candidate.body
    if (!closure.byHashPart(hashPartOf(root))) {
      return { path: root, code: 'malformed', reason: 'its closure does not have this path', next: undefined }
    }
    let judged = 0
    for (const entry of closure.paths()) {
      if (++judged % JUDGED_AT_ONCE === 0) await nextTurn()
      const verdict = this.#verdictOn(entry, candidate.network)
      if (!verdict.ok) return faultOf(tellerOf(candidate), entry, verdict)
    }
    return undefined
  }

  #verdictOn(entry: PublishedPath, network: string): Verdict {
    return this.#deps.trust.judge(entry, entry.signatures, this.#deps.signersIn(network))
  }

  #signaturesOf(facts: Omit<PublishedPath, 'signatures'>, theirs: readonly string[]): string[] {
    return [...new Set([this.#deps.key.sign(facts), ...theirs])]
  }

  /** Those likeliest to be believed come first: decoded already, or made by a builder whose key is trusted. */
  #ranked(hashPart: string, isMeant = (_candidate: Candidate) => true): Candidate[] {
    const rank = ({ body }: Candidate) =>
      this.#deps.closures.peek(body) ? 0 : this.#deps.trust.has(body.signer) ? 1 : 2
    const counts = new Map<string, number>()
    return this.#deps
      .candidates(hashPart)
      .filter(isMeant)
      .map((candidate) => ({ candidate, rank: rank(candidate) }))
      .sort((one, other) => one.rank - other.rank)
      .map(({ candidate }) => candidate)
      .filter(({ network }) => {
        const count = (counts.get(network) ?? 0) + 1
        counts.set(network, count)
        return count <= CANDIDATES_MAX
      })
  }

  #remember(facts: SignedFacts, hashPart: string, network: string | undefined): void {
    this.#answered.set(facts.narHash, { path: facts.path, sizeBytes: facts.narSize, hashPart, network })
    if (facts.narSize <= this.#wholeBytesMax) this.#prefetch.want(facts)
  }

  /** What was answered for this NAR; found anew when Nix remembers an answer that the agent, started since, does not. */
  async #answeredFor(digest: Digest, hashPart: string | undefined, signal: AbortSignal): Promise<Answered | undefined> {
    const known = this.#answered.get(digest)
    if (known || hashPart === undefined) return known
    await this.#find(hashPart, signal, FOUND_MS_MAX)
    return this.#answered.get(digest)
  }

  async #fetchAhead(digest: Digest, moreBytes: number, signal: AbortSignal): Promise<void> {
    const answered = this.#answered.get(digest)
    if (!answered) return
    this.#deps.named?.(digest, answered.path)
    await this.#fetchHere(digest, { ...answered, moreBytes }, signal)
  }

  async #fetchHere(digest: Digest, wanted: Wanted, signal: AbortSignal): Promise<void> {
    if (this.#deps.blobs.has(digest)) return
    await this.#fetchAnew(digest, wanted, signal)
    this.#answered.came(digest)
  }

  /** From peers, else from upstream. @throws {AgentError} what the first of them failed with */
  async #fetchAnew(digest: Digest, wanted: Wanted, signal: AbortSignal): Promise<void> {
    const { fetcher, upstreams } = this.#deps
    try {
      if (wanted.network !== undefined)
        return await this.#inEachNetwork(wanted, signal, (options) => fetcher.fetch(digest, options))
    } catch (failure) {
      signal.throwIfAborted()
      return await upstreams.fetch(digest, wanted.hashPart, signal).catch(() => Promise.reject(failure as Error))
    }
    await upstreams.fetch(digest, wanted.hashPart, signal)
  }

  /**
   * Tries to get a NAR in each network where its path is published, first in the one that it was answered for.
   *
   * @throws {AgentError} what the last of them failed with.
   */
  async #inEachNetwork<T>(
    { hashPart, network: first, sizeBytes, moreBytes = 0 }: Wanted,
    signal: AbortSignal,
    fetch: (options: FetchOptions) => Promise<T>,
  ): Promise<T> {
    const [candidates, holders] = [this.#ranked(hashPart), this.#holders(hashPart)]
    let failure: unknown
    for (const network of networksOf(first, [...candidates, ...holders])) {
      const isHere = (one: { network: string }) => one.network === network
      const who = { candidates: candidates.filter(isHere), holders: holders.filter(isHere) }
      const sources = narPeers(who, this.#deps.sources, signal)
      try {
        return await fetch({ network, sources, signal, sizeBytes, moreBytes })
      } catch (error) {
        failure = error
        if (signal.aborted) break
      }
    }
    throw failure
  }

  #holders(hashPart: string): readonly Holder[] {
    return this.#deps.stores?.holders(hashPart) ?? []
  }
}

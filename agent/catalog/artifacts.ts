/**
 * What is shared in one network, here and elsewhere: a view of the artifact records. Announces and withdraws this node's own, finds
 * everybody's, or those of whom a policy lets publish. catalogs.ts puts the networks together.
 *
 * A record whose body is no artifact that this agent understands is kept and passed on like any other, and is not in the view.
 */
import { CID } from 'multiformats/cid'
import {
  type ArtifactBody,
  artifactBody,
  NAME_LENGTH_MAX,
  NAME_PATTERN,
  type NixArtifactBody,
  pathPrefix,
} from '../../protocols/artifact/artifact.ts'
import type { SignedRecord } from '../../protocols/records/record.ts'
import { AgentError } from '../error.ts'
import { peerIdOf } from '../identity/peer-id.ts'
import type { Database } from '../state/database.ts'
import { transaction } from '../state/database.ts'
import { ArtifactIndex, type ArtifactKey, type ArtifactRow, type Welcomes } from './artifact-index.ts'
import type { Nodes } from './nodes.ts'
import { PathIndex } from './path-index.ts'
import type { Change, Records } from './records.ts'

export const ARTIFACT_KIND = 'artifact'
/** Of an artifact's record; renewed at half of it by Renewer. A publisher who is gone for good is forgotten after it. */
export const ARTIFACT_LEASE_MS = 30 * 24 * 3_600_000
/** Candidates listed when a name means several things. */
const LISTED_MAX = 5
/** Answered at most; who wants more types more. */
const SEARCH_LIMIT_MAX = 1_000

export type Artifact = {
  cid: string
  name: string
  body: ArtifactBody
  peerId: string
  /** As the publisher's presence says, while it is there. */
  nodeName: string | undefined
  isOwn: boolean
  issued: number
  expires: number
  /** The id, in hexadecimal, of the network that it was said in. */
  network: string
}

export type Candidate = { peerId: string; name: string; body: NixArtifactBody; network: string }

/** One of the things that a reference may mean. */
export type Meaning = Pick<Artifact, 'cid' | 'name' | 'isOwn' | 'issued' | 'network'> & { publisher: Uint8Array }

export type ArtifactsOptions = {
  db: Database
  records: Pick<Records, 'network' | 'publisher' | 'now' | 'put' | 'remove' | 'get' | 'own' | 'addIndex' | 'onChange'>
  nodes: Pick<Nodes, 'get' | 'onRename'>
  /** Whether what a publisher shares is to be found here; asked with each query, since policies change. This node's own always is. */
  welcomes?: Welcomes
}

export class Artifacts implements Disposable {
  /** Its id in hexadecimal. */
  readonly network: string
  readonly #records: ArtifactsOptions['records']
  readonly #nodes: ArtifactsOptions['nodes']
  readonly #db: Database
  readonly #index: ArtifactIndex
  readonly #isWelcome: Welcomes
  readonly #paths = new PathIndex<ArtifactKey>()
  /** Keys that Nix artifacts name, by artifact. */
  readonly #signers = new Map<string, { publisher: Uint8Array; signer: string }>()
  /** Publishers whose name changed since the last search, by peer id: renames cost nothing until somebody searches. */
  readonly #renamed = new Map<string, Uint8Array>()
  readonly #stop: (() => void)[]

  constructor({ db, records, nodes, welcomes }: ArtifactsOptions) {
    this.network = Buffer.from(records.network).toString('hex')
    this.#db = db
    this.#records = records
    this.#nodes = nodes
    this.#isWelcome = (publisher) => this.#isOwn(publisher) || (welcomes?.(publisher) ?? true)
    this.#index = new ArtifactIndex(db, welcomes && this.#isWelcome)
    for (const key of this.#index.ofType('nix'))
      this.#indexPaths(key, records.get(key.publisher, ARTIFACT_KIND, key.name))
    records.addIndex((change) => this.#apply(change))
    this.#stop = [
      records.onChange((changes) => {
        for (const change of changes) if (change.kind === ARTIFACT_KIND) this.#indexPaths(change, change.record)
      }),
      nodes.onRename((publisher) => this.#renamed.set(peerIdOf(publisher), publisher)),
    ]
  }

  [Symbol.dispose](): void {
    for (const stop of this.#stop) stop()
  }

  /**
   * Says that this node shares the artifact, in place of what it shared under this name.
   *
   * @throws {AgentError} `usage` for a name or description that cannot be, `limit` when the node shares too much.
   */
  announce(name: string, body: ArtifactBody): Artifact {
    if (!NAME_PATTERN.test(name) || name.length > NAME_LENGTH_MAX) {
      throw new AgentError('usage', `"${name}" cannot be the name of an artifact`, {
        next: `Give another with --name: at most ${NAME_LENGTH_MAX} letters, digits and + - . _ ? =, not starting with a dot.`,
      })
    }
    const { error } = artifactBody.safeParse(body)
    if (error) throw new AgentError('usage', `${error.issues[0]?.path.join('.')}: ${error.issues[0]?.message}`)
    return this.#view(this.#records.put({ kind: ARTIFACT_KIND, name, body, leaseMs: ARTIFACT_LEASE_MS }), body)
  }

  /**
   * Takes back what this node said under this name, or of this CID under any name, also from another state directory with the same
   * key. Gives back what it was.
   *
   * @throws {AgentError} `not-found`
   */
  withdraw(ref: string): Artifact[] {
    const own = this.own()
    const names = new Set(own.map(({ name }) => name))
    const others = this.#index.ofPublisher(this.#records.publisher).filter(({ name }) => !names.has(name))
    const all = [...own, ...this.#entries(others)]
    const named = all.filter(({ name }) => name === ref)
    const meant = named.length > 0 ? named : all.filter(({ cid }) => cid === cidOf(ref))
    if (meant.length === 0) {
      throw new AgentError('not-found', `this node shares nothing called ${ref}`, {
        next: 'Give the name or the CID that `agent publish` printed.',
      })
    }
    for (const { name } of meant) this.#records.remove(ARTIFACT_KIND, name)
    return meant
  }

  /** What this node shares. */
  own(): Artifact[] {
    return this.#records.own(ARTIFACT_KIND).flatMap((record) => this.#viewOf(record))
  }

  /** Best first; everything, newest first, when no words are given. The same content under the same name comes once. */
  search(words: string, limit: number): { artifacts: Artifact[]; truncated: boolean } {
    this.#updateNames()
    const wanted = Math.min(limit, SEARCH_LIMIT_MAX)
    const { publisher: preferred } = this.#records
    const rows = this.#index.search(words, { limit: wanted + 1, now: this.#records.now(), preferred })
    return { artifacts: this.#entries(rows.slice(0, wanted)), truncated: rows.length > wanted }
  }

  /**
   * The artifact that is meant by a CID, a name, or `publisher/name`, the publisher being a peer id or a node's name. Of several that
   * are the same content this node's own, or the one said last.
   *
   * @throws {AgentError} `not-found`; `usage` when a name means several contents.
   */
  resolve(ref: string): Artifact {
    const meant = theOne(ref, this.meanings(ref), {
      whereOf: () => '',
      next: 'Name one by its CID, or as publisher/name.',
    })
    const artifact = meant && this.open(meant)
    if (artifact) return artifact
    throw unknownArtifact(ref)
  }

  /** What a reference, as in `resolve`, may mean: the newest first. */
  meanings(ref: string): Meaning[] {
    const { network } = this
    return this.#rowsOf(ref).map(({ publisher, name, cid, issued }) => {
      return { publisher, name, cid, issued, isOwn: this.#isOwn(publisher), network }
    })
  }

  /** The whole of it; undefined when it has gone meanwhile. */
  open(meaning: Meaning): Artifact | undefined {
    return this.#entry(meaning)[0]
  }

  /** Peer ids of those who say that they share this content. */
  holders(cid: string): string[] {
    return [...new Set(this.#index.withCid(cid, this.#records.now()).map(({ publisher }) => peerIdOf(publisher)))]
  }

  /** Nix artifacts that may have the path with this hash part (the 32 characters before its name). */
  candidates(hashPart: string): Candidate[] {
    return this.#paths.find(pathPrefix(hashPart)).flatMap((key) => {
      const [artifact] = this.#isWelcome(key.publisher) ? this.#entry(key) : []
      if (artifact?.body.type !== 'nix') return []
      const { peerId, name, body, network } = artifact
      return [{ peerId, name, body, network }]
    })
  }

  /** The keys with which publishers say that they sign store paths, each once; whoever reads them has to parse them. */
  signers(): { publisher: Uint8Array; signers: string[] }[] {
    const all = new Map<string, { publisher: Uint8Array; signers: string[] }>()
    for (const { publisher, signer } of this.#signers.values()) {
      const key = Buffer.from(publisher).toString('hex')
      const entry = all.get(key) ?? { publisher, signers: [] }
      if (!entry.signers.includes(signer)) entry.signers.push(signer)
      all.set(key, entry)
    }
    return [...all.values()]
  }

  /** How many artifact records are live. */
  count(): { own: number; known: number } {
    return this.#index.counts(this.#records.publisher, this.#records.now())
  }

  #isOwn(publisher: Uint8Array): boolean {
    return Buffer.compare(publisher, this.#records.publisher) === 0
  }

  #rowsOf(ref: string): ArtifactRow[] {
    const now = this.#records.now()
    const cid = cidOf(ref)
    if (cid) return this.#index.withCid(cid, now)
    const slash = ref.lastIndexOf('/')
    const named = this.#index.named(ref.slice(slash + 1), now)
    if (slash < 0) return named
    const publisher = ref.slice(0, slash)
    return named.filter((row) => {
      const peerId = peerIdOf(row.publisher)
      return publisher === peerId || publisher === this.#nodes.get(peerId)?.name
    })
  }

  #entries(keys: ArtifactKey[]): Artifact[] {
    return keys.flatMap((key) => this.#entry(key))
  }

  #entry({ publisher, name }: ArtifactKey): Artifact[] {
    const record = this.#records.get(publisher, ARTIFACT_KIND, name)
    return record ? this.#viewOf(record) : []
  }

  #viewOf(record: SignedRecord): Artifact[] {
    const body = bodyOf(record)
    return body ? [this.#view(record, body)] : []
  }

  #view({ publisher, name, issued, expires }: SignedRecord, body: ArtifactBody): Artifact {
    const peerId = peerIdOf(publisher)
    const isOwn = this.#isOwn(publisher)
    return {
      cid: body.cid.toString(),
      name,
      body,
      peerId,
      nodeName: this.#nodes.get(peerId)?.name,
      isOwn,
      issued,
      expires,
      network: this.network,
    }
  }

  /** In the transaction of the change. */
  #apply({ publisher, kind, name, record }: Change): void {
    if (kind !== ARTIFACT_KIND) return
    const body = record && bodyOf(record)
    if (record && body) this.#index.set({ ...record, cid: body.cid.toString() }, body, this.#wordsOf(publisher))
    else this.#index.delete({ publisher, name })
  }

  /** After the commit. */
  #indexPaths({ publisher, name }: ArtifactKey, record: SignedRecord | undefined): void {
    const key = `${Buffer.from(publisher).toString('hex')}/${name}`
    const body = record && bodyOf(record)
    if (body?.type === 'nix') {
      this.#paths.set(key, { publisher, name }, body.paths)
      this.#signers.set(key, { publisher: Uint8Array.from(publisher), signer: body.signer })
    } else {
      this.#paths.delete(key)
      this.#signers.delete(key)
    }
  }

  #updateNames(): void {
    if (this.#renamed.size === 0) return
    try {
      transaction(this.#db, () => {
        for (const publisher of this.#renamed.values()) this.#index.rename(publisher, this.#wordsOf(publisher))
      })
      this.#renamed.clear()
    } catch {
      // A full disk must not keep anybody from searching: the names that were known will do until it can be written.
    }
  }

  #wordsOf(publisher: Uint8Array): string {
    const peerId = peerIdOf(publisher)
    return `${peerId} ${this.#nodes.get(peerId)?.name ?? ''}`
  }
}

/**
 * Of what a reference may mean the first of this node's own, or the first; undefined when there is nothing. `whereOf` is said beside each
 * when there are several, and `next` what to do about it.
 *
 * @throws {AgentError} `usage` when they are different contents.
 */
export function theOne(
  ref: string,
  meanings: readonly Meaning[],
  { whereOf, next }: { whereOf: (meaning: Meaning) => string; next: string },
): Meaning | undefined {
  const [first] = meanings
  if (meanings.every(({ cid }) => cid === first?.cid)) return meanings.find(({ isOwn }) => isOwn) ?? first
  const listed = meanings
    .slice(0, LISTED_MAX)
    .map((one) => `${peerIdOf(one.publisher)}/${one.name} (${one.cid})${whereOf(one)}`)
  const more = meanings.length > LISTED_MAX ? `, and ${meanings.length - LISTED_MAX} more` : ''
  throw new AgentError('usage', `${ref} means several things: ${listed.join(', ')}${more}`, { next })
}

export function unknownArtifact(ref: string): AgentError {
  return new AgentError('not-found', `no artifact ${ref} is known here`, {
    next: 'Look for it with `agent search`. What was published just now arrives within seconds, if this node has peers.',
  })
}

/** The text of a CID in its usual form, if that is what it is. */
function cidOf(ref: string): string | undefined {
  try {
    return CID.parse(ref).toV1().toString()
  } catch {
    return undefined
  }
}

function bodyOf(record: SignedRecord): ArtifactBody | undefined {
  if (record.deleted || !NAME_PATTERN.test(record.name)) return undefined
  return artifactBody.safeParse(record.body).data
}

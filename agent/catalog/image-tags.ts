/**
 * The images of one network, here and elsewhere: a view of the `oci-tag` records. Says and takes back this node's own, and decides which of
 * several statements about a tag counts (protocols/oci-tag/spec.md).
 *
 * In a closed network a repository belongs to the network: whoever the policy lets push there may move its tags, and the last move counts. In the
 * open one, where nobody can be asked, it belongs to its publisher, and is called `<publisher>/<repository>`.
 */
import { base36 } from 'multiformats/bases/base36'
import { CID } from 'multiformats/cid'
import { identity } from 'multiformats/hashes/identity'
import {
  compareMoves,
  countsBy,
  OCI_TAG_KIND,
  type OciManifestBody,
  type OciTagBody,
  ociTagBody,
  ociTagName,
} from '../../protocols/oci-tag/oci-tag.ts'
import type { SignedRecord } from '../../protocols/records/record.ts'
import { peerIdOf } from '../identity/peer-id.ts'
import type { Database } from '../state/database.ts'
import { ImageIndex, type ImageKey, type ImageRow } from './image-index.ts'
import type { Nodes } from './nodes.ts'
import type { Change, Records } from './records.ts'

/** Of a tag's record; renewed at half of it by Renewer. */
export const OCI_TAG_LEASE_MS = 30 * 24 * 3_600_000
/** A search reads so many rows at a time until it has enough that count. */
const SEARCH_ROWS = 200
const SEARCH_ROWS_MAX = 10_000
const LIBP2P_KEY = 0x72
/** See ownerName. */
const OWNER_PATTERN = /^k51[0-9a-z]{59}\//

/** A statement that counts, or one of those that did. */
export type ImageTag = {
  /** What it is called in this network. */
  repository: string
  tag: string | undefined
  body: OciManifestBody
  peerId: string
  publisher: Uint8Array
  /** As the publisher's presence says, while it is there. */
  nodeName: string | undefined
  isOwn: boolean
  moved: number
  issued: number
  expires: number
  /** The id, in hexadecimal, of the network that it was said in. */
  network: string
}

/** A move of a tag: `digest` is undefined when it was deleted; `counts` whether its publisher may push there, as the policy is now. */
export type TagMove = {
  peerId: string
  nodeName: string | undefined
  moved: number
  digest: string | undefined
  counts: boolean
}

/** What is said of a manifest; when, and where, is added here. */
export type SaidManifest = Omit<OciManifestBody, 'repository' | 'tag' | 'moved' | 'gone'>

export type ImageTagsOptions = {
  db: Database
  records: Pick<Records, 'network' | 'publisher' | 'now' | 'put' | 'remove' | 'get' | 'addIndex' | 'onChange'>
  nodes: Pick<Nodes, 'get'>
  /** Whether a publisher may put tags on a repository here; asked with each query, since policies change. Without it a repository is its publisher's. */
  mayPush?: (publisher: Uint8Array, repository: string) => boolean
}

export class ImageTags implements Disposable {
  /** Its id in hexadecimal. */
  readonly network: string
  readonly #records: ImageTagsOptions['records']
  readonly #nodes: ImageTagsOptions['nodes']
  readonly #index: ImageIndex
  readonly #mayPush: ImageTagsOptions['mayPush']
  readonly #listeners = new Set<(repository: string, tag: string | undefined) => void>()
  readonly #stop: () => void

  constructor({ db, records, nodes, mayPush }: ImageTagsOptions) {
    this.network = Buffer.from(records.network).toString('hex')
    this.#records = records
    this.#nodes = nodes
    this.#mayPush = mayPush
    this.#index = new ImageIndex(db)
    records.addIndex((change) => this.#apply(change))
    this.#stop = records.onChange((changes) => {
      for (const { kind, record } of changes) {
        const body = kind === OCI_TAG_KIND && record ? bodyOf(record) : undefined
        if (record && body) for (const tell of this.#listeners) tell(this.#placeOf(record.publisher, body), body.tag)
      }
    })
  }

  [Symbol.dispose](): void {
    this.#stop()
    this.#listeners.clear()
  }

  /** What a repository of this node's is called here, and what it is called in this node's records. */
  placeOfOwn(repository: string): { named: string; said: string } {
    if (this.#mayPush !== undefined) return { named: repository, said: repository }
    const own = `${ownerName(this.#records.publisher)}/`
    const said = repository.startsWith(own) ? repository.slice(own.length) : repository
    return { named: own + said, said }
  }

  /** What a client means by a repository: in the open network this node's own, unless it names another publisher. */
  callOf(repository: string): string {
    const isAnothers = this.#mayPush === undefined && OWNER_PATTERN.test(repository)
    return isAnothers ? repository : this.placeOfOwn(repository).named
  }

  /** What a tag means; undefined when there is none. */
  get(repository: string, tag: string): ImageTag | undefined {
    const row = this.#first(this.#index.tagged(repository, tag, this.#records.now()))
    return row && this.#open(row)
  }

  /** Each tag of a repository with what it means, in ASCII order. */
  tags(repository: string): string[] {
    const rows = this.#index.ofRepository(repository, this.#records.now()).filter(({ tag }) => tag !== null)
    const byTag = Map.groupBy(rows, ({ tag }) => tag ?? '')
    return [...byTag].flatMap(([tag, all]) => (this.#first(all)?.digest ? [tag] : [])).sort()
  }

  /** Whether anything that counts was said of a repository. */
  has(repository: string): boolean {
    return this.#index.ofRepository(repository, this.#records.now()).some((row) => this.#counts(row))
  }

  /** Statements of a manifest, in whatever repository: the newest first. That they count is not needed to fetch it by its hash. */
  withDigest(digest: string): ImageTag[] {
    return this.#index.withDigest(digest, this.#records.now()).flatMap((row) => this.#open(row) ?? [])
  }

  /** Manifests that belong to another one, each once. */
  referrers(repository: string, subject: string): ImageTag[] {
    const rows = this.#index.withSubject(repository, subject, this.#records.now()).filter((row) => this.#isMeant(row))
    const each = new Map(rows.map((row) => [row.digest, row]))
    return [...each.values()].flatMap((row) => this.#open(row) ?? [])
  }

  /** Peer ids of those who said something of a repository, the newest first. */
  publishers(repository: string): string[] {
    const rows = this.#index.ofRepository(repository, this.#records.now())
    return [...new Set(rows.map(({ publisher }) => peerIdOf(publisher)))]
  }

  /** Peer ids of those who say that they have the manifest. */
  holders(digest: string): string[] {
    return [...new Set(this.#index.withDigest(digest, this.#records.now()).map(({ publisher }) => peerIdOf(publisher)))]
  }

  /** Tags that count, best first; all, the last moved first, when no words are given. */
  search(words: string, limit: number): { images: ImageTag[]; truncated: boolean } {
    const images: ImageTag[] = []
    const now = this.#records.now()
    for (let after = 0; after < SEARCH_ROWS_MAX; after += SEARCH_ROWS) {
      const rows = this.#index.search(words, { limit: SEARCH_ROWS, after, now })
      for (const row of rows) {
        const image = this.#isMeant(row) ? this.#open(row) : undefined
        if (image) images.push(image)
        if (images.length > limit) return { images: images.slice(0, limit), truncated: true }
      }
      if (rows.length < SEARCH_ROWS) break
    }
    return { images, truncated: false }
  }

  /** What was said of a tag, as far as this node heard of it: the newest first. */
  history(repository: string, tag: string, limit: number): TagMove[] {
    return this.#index.history(repository, tag, limit).map(({ publisher, moved, digest }) => {
      const peerId = peerIdOf(publisher)
      const counts = this.#mayPush?.(publisher, repository) ?? true
      return { peerId, nodeName: this.#nodes.get(peerId)?.name, moved, digest: digest ?? undefined, counts }
    })
  }

  /**
   * Says that a tag means this manifest from now on, whoever had it; `moved` only for what was found out at another time.
   *
   * @throws {AgentError} `limit` when the node says too much.
   */
  move(repository: string, tag: string, manifest: SaidManifest, moved?: number): void {
    const { said, named } = this.placeOfOwn(repository)
    this.#say({ ...manifest, repository: said, tag, moved: moved ?? this.#nextMove(named, tag) })
  }

  /** Says that there is a manifest that belongs to another one, and has no tag. @throws {AgentError} `limit` */
  addReferrer(repository: string, manifest: SaidManifest): void {
    const { said } = this.placeOfOwn(repository)
    this.#say({ ...manifest, repository: said, moved: this.#records.now() })
  }

  /** Takes back what this node says of a manifest without a tag. */
  removeReferrer(repository: string, digest: string): void {
    this.#records.remove(OCI_TAG_KIND, ociTagName({ repository: this.placeOfOwn(repository).said, digest }))
  }

  /** The tag is no more, whoever put it there. False when there is none. */
  remove(repository: string, tag: string): boolean {
    const { said, named } = this.placeOfOwn(repository)
    const rows = this.#index.tagged(named, tag, this.#records.now()).filter((row) => this.#counts(row))
    if (!this.#first(rows)?.digest) return false
    if (rows.every(({ publisher }) => this.#isOwn(publisher)))
      this.#records.remove(OCI_TAG_KIND, ociTagName({ repository: said, tag }))
    else this.#say({ repository: said, tag, moved: this.#nextMove(named, tag), gone: true })
    return true
  }

  /**
   * Takes back what this node says of a tag that another one deleted, and a deletion that nobody contradicts any more: neither says anything then. True
   * when the tag is gone, and this node had said that it is there.
   */
  settle(repository: string, tag: string): boolean {
    const rows = this.#index.tagged(repository, tag, this.#records.now())
    const own = rows.find(({ publisher }) => this.#isOwn(publisher))
    const first = this.#first(rows)
    if (own === undefined || first === undefined || first.digest !== null) return false
    const isContradicted = rows.some(({ digest }) => digest !== null)
    const isMoot = own.digest !== null || !isContradicted
    if (isMoot) this.#records.remove(OCI_TAG_KIND, own.name)
    return own.digest !== null
  }

  /** What this node says of tags that are gone. */
  ownDeletions(): { repository: string; tag: string }[] {
    const rows = this.#index.ofPublisher(this.#records.publisher, this.#records.now())
    return rows.flatMap(({ repository, tag, digest }) => (digest === null && tag !== null ? [{ repository, tag }] : []))
  }

  /** Takes back what this node said, so many at most; gives back how many. */
  takeBack(limit: number): number {
    const rows = this.#index.ofPublisher(this.#records.publisher, this.#records.now()).slice(0, limit)
    for (const { name } of rows) this.#records.remove(OCI_TAG_KIND, name)
    return rows.length
  }

  /** What this node says it has. */
  own(): ImageTag[] {
    const rows = this.#index.ofPublisher(this.#records.publisher, this.#records.now())
    return rows.flatMap((row) => (row.digest === null ? [] : (this.#open(row) ?? [])))
  }

  /** Told of a repository and tag after something was said of it. Gives back how to stop. */
  onChange(listener: (repository: string, tag: string | undefined) => void): () => void {
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }

  #say(body: OciTagBody): void {
    const name = ociTagName(body.gone === true ? { ...body, digest: undefined } : body)
    this.#records.put({ kind: OCI_TAG_KIND, name, body: ociTagBody.parse(body), leaseMs: OCI_TAG_LEASE_MS })
  }

  /** Later than whatever counts. */
  #nextMove(repository: string, tag: string): number {
    const now = this.#records.now()
    const first = this.#first(this.#index.tagged(repository, tag, now))
    return Math.max(now, (first?.moved ?? 0) + 1)
  }

  /** Of the statements about one tag the one that counts. */
  #first(rows: readonly ImageRow[]): ImageRow | undefined {
    return rows.filter((row) => this.#counts(row)).reduce<ImageRow | undefined>(later, undefined)
  }

  /** Whether a row is the one that counts of its tag, and says that there is one. */
  #isMeant(row: ImageRow): boolean {
    if (row.digest === null || !this.#counts(row)) return false
    if (row.tag === null) return true
    const first = this.#first(this.#index.tagged(row.repository, row.tag, this.#records.now()))
    return first?.name === row.name && Buffer.compare(first.publisher, row.publisher) === 0
  }

  #counts(row: Pick<ImageRow, 'publisher' | 'repository' | 'moved'>): boolean {
    if (!countsBy(row, this.#records.now())) return false
    return this.#mayPush === undefined || this.#isOwn(row.publisher) || this.#mayPush(row.publisher, row.repository)
  }

  #isOwn(publisher: Uint8Array): boolean {
    return Buffer.compare(publisher, this.#records.publisher) === 0
  }

  #open({ publisher, name }: ImageKey): ImageTag | undefined {
    const record = this.#records.get(publisher, OCI_TAG_KIND, name)
    const body = record && bodyOf(record)
    if (!record || !body || body.gone === true) return undefined
    const peerId = peerIdOf(publisher)
    return {
      repository: this.#placeOf(publisher, body),
      tag: body.tag,
      body,
      peerId,
      publisher,
      nodeName: this.#nodes.get(peerId)?.name,
      isOwn: this.#isOwn(publisher),
      moved: body.moved,
      issued: record.issued,
      expires: record.expires,
      network: this.network,
    }
  }

  #placeOf(publisher: Uint8Array, { repository }: OciTagBody): string {
    return this.#mayPush === undefined ? `${ownerName(publisher)}/${repository}` : repository
  }

  /** In the transaction of the change. */
  #apply({ publisher, kind, name, record }: Change): void {
    if (kind !== OCI_TAG_KIND) return
    const body = record && bodyOf(record)
    if (!record || !body) {
      this.#index.delete({ publisher, name })
      return
    }
    const peerId = peerIdOf(publisher)
    const words = `${peerId} ${this.#nodes.get(peerId)?.name ?? ''}`
    const repository = this.#placeOf(publisher, body)
    this.#index.set({ publisher, name, repository, expires: record.expires }, body, words)
  }
}

/** A publisher as the first component of a repository: its peer id as a CID in base 36, which has no capitals. */
export function ownerName(publisher: Uint8Array): string {
  // The protobuf of an Ed25519 key, as libp2p hashes it.
  const key = Buffer.concat([Buffer.from('08011220', 'hex'), publisher])
  return CID.createV1(LIBP2P_KEY, identity.digest(key)).toString(base36)
}

function bodyOf(record: SignedRecord): OciTagBody | undefined {
  const body = record.deleted ? undefined : ociTagBody.safeParse(record.body).data
  if (body === undefined) return undefined
  return record.name === ociTagName(body.gone === true ? { ...body, digest: undefined } : body) ? body : undefined
}

function later(best: ImageRow | undefined, row: ImageRow): ImageRow {
  return best === undefined || compareMoves(row, best) > 0 ? row : best
}

/**
 * Artifacts that a person wants kept on this node whatever the quota: each with all its blobs, until it is unpinned. What is pinned is
 * for this node; who else may be given it follows from where it was published and fetched, not from the pin.
 *
 * A pin is of content in a network, by its CID; the name is what it was pinned by, for people. Its row and its blobs' reasons are
 * written in one transaction, so it survives kills whole, or not at all.
 */
import type { Digest } from '../../protocols/artifact/artifact.ts'
import { AgentError } from '../error.ts'
import { type Database, migrate, transaction } from '../state/database.ts'
import type { BlobIndex } from './blob-index.ts'

/** Reasons of blobs' pins that begin so are of artifacts that are pinned. */
const ARTIFACT_PIN = 'pin:'
const ARTIFACT_PIN_PATTERN = /^pin:([^/]+)\/(.+)$/

const SCHEMA = [
  `CREATE TABLE artifact_pins (
     network TEXT NOT NULL, cid TEXT NOT NULL, name TEXT NOT NULL, type TEXT NOT NULL, size_bytes INTEGER NOT NULL,
     root TEXT, path_count INTEGER, pinned_ms INTEGER NOT NULL, PRIMARY KEY (network, cid)
   ) STRICT, WITHOUT ROWID;`,
]

export type PinnedArtifact = {
  /** Its id in hex. */
  network: string
  cid: string
  name: string
  type: 'file' | 'folder' | 'nix'
  sizeBytes: number
  /** Of a closure: the store path that it is of, and how many it has. */
  root?: string
  pathCount?: number
  pinnedMs: number
}
type Row = Omit<PinnedArtifact, 'root' | 'pathCount'> & { root: string | null; pathCount: number | null }

export type PinsDeps = {
  db: Database
  index: Pick<BlobIndex, 'pin' | 'pinned' | 'absent' | 'unpinAll'>
  /** Blobs that lose their last reason with a network go with it. */
  blobs: { setPins(reason: string, digests: readonly Digest[]): void }
  now?: () => number
}

export class Pins {
  readonly #deps: PinsDeps
  readonly #sql

  constructor(deps: PinsDeps) {
    const { db } = deps
    migrate(db, 'artifact-pins', SCHEMA)
    this.#deps = deps
    const columns = `network, cid, name, type, size_bytes AS sizeBytes, root, path_count AS pathCount,
      pinned_ms AS pinnedMs`
    this.#sql = {
      all: db.prepare(`SELECT ${columns} FROM artifact_pins ORDER BY pinned_ms, cid`),
      get: db.prepare(`SELECT ${columns} FROM artifact_pins WHERE network = ? AND cid = ?`),
      put: db.prepare('INSERT OR REPLACE INTO artifact_pins VALUES (?, ?, ?, ?, ?, ?, ?, ?)'),
      drop: db.prepare('DELETE FROM artifact_pins WHERE network = ? AND cid = ?'),
    }
  }

  /** Keeps these blobs for the artifact; the caller holds them until this returns. */
  add(artifact: Omit<PinnedArtifact, 'pinnedMs'>, digests: Iterable<Digest>): PinnedArtifact {
    const { db, index, now = Date.now } = this.#deps
    const pinned = { ...artifact, pinnedMs: now() }
    const { network, cid, name, type, sizeBytes, root = null, pathCount = null, pinnedMs } = pinned
    transaction(db, () => {
      index.unpinAll(reasonOfPin(artifact))
      for (const digest of digests) index.pin(digest, reasonOfPin(artifact))
      this.#sql.put.run(network, cid, name, type, sizeBytes, root, pathCount, pinnedMs)
    })
    return pinned
  }

  /**
   * Keeps it no longer. Nothing is removed by that: it goes when its room is needed, or with `agent gc`.
   *
   * @throws {AgentError} `not-found`; `usage` when several are meant.
   */
  remove(ref: string, network?: string): PinnedArtifact {
    const [pinned, ...others] = this.find(ref, network)
    if (pinned === undefined) {
      throw new AgentError('not-found', `nothing that is pinned is called ${JSON.stringify(ref)}`, {
        next: '`agent pins` lists what is pinned.',
      })
    }
    if (others.length > 0) {
      const cids = [pinned, ...others].map(({ cid }) => cid)
      throw new AgentError('usage', `${cids.length} things that are pinned are called ${ref}`, {
        next:
          new Set(cids).size > 1
            ? `Name one by its CID: ${cids.join(' or ')}.`
            : 'Say in which network with --network.',
      })
    }
    transaction(this.#deps.db, () => {
      this.#sql.drop.run(pinned.network, pinned.cid)
      this.#deps.index.unpinAll(reasonOfPin(pinned))
    })
    return pinned
  }

  /** Those that a CID, a name or a store path may mean. */
  find(ref: string, network?: string): PinnedArtifact[] {
    const name = ref.slice(ref.startsWith('/') ? 0 : ref.lastIndexOf('/') + 1)
    return this.list().filter(
      (one) =>
        (network === undefined || one.network === network) &&
        (one.cid === ref || one.name === name || one.root === ref),
    )
  }

  /** The oldest first. */
  list(): PinnedArtifact[] {
    return (this.#sql.all.all() as Row[]).map(pinnedOf)
  }

  /** What is kept for it, here or not. */
  blobsOf(pinned: Pick<PinnedArtifact, 'network' | 'cid'>): Digest[] {
    return this.#deps.index.pinned(reasonOfPin(pinned))
  }

  /** What of it is not in the blob directory. */
  absentOf(pinned: Pick<PinnedArtifact, 'network' | 'cid'>): Digest[] {
    return this.#deps.index.absent(reasonOfPin(pinned))
  }

  /** The artifact that a blob is pinned for; undefined when the reason is another. */
  pinnedFor(reason: string): PinnedArtifact | undefined {
    const [, network, cid] = ARTIFACT_PIN_PATTERN.exec(reason) ?? []
    if (network === undefined || cid === undefined) return undefined
    const row = this.#sql.get.get(network, cid) as Row | undefined
    return row && pinnedOf(row)
  }

  networks(): Set<string> {
    return new Set(this.list().map(({ network }) => network))
  }

  /** This node left the network. */
  forgetNetwork(network: string): void {
    for (const one of this.list().filter((pinned) => pinned.network === network)) {
      this.#deps.blobs.setPins(reasonOfPin(one), [])
      this.#sql.drop.run(one.network, one.cid)
    }
  }
}

function pinnedOf({ root, pathCount, ...rest }: Row): PinnedArtifact {
  return { ...rest, ...(root !== null && { root }), ...(pathCount !== null && { pathCount }) }
}

function reasonOfPin({ network, cid }: Pick<PinnedArtifact, 'network' | 'cid'>): string {
  return `${ARTIFACT_PIN}${network}/${cid}`
}

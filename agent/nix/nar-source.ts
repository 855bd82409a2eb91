/**
 * What this node publishes from its Nix store: which paths, and their NARs as blobs, read from the store's own files. Nothing is stored
 * twice. The list survives restarts; a path that Nix deleted, or built again differently, is not held any more, which is logged once.
 */
import { lstat } from 'node:fs/promises'
import type { StatementSync } from 'node:sqlite'
import { type ClosureManifest, type Digest, PATHS_MAX } from '../../protocols/artifact/artifact.ts'
import type { NarLayout } from '../../protocols/nar/write.ts'
import type { BlobHolder, BlobSource } from '../content/content.ts'
import { publicationOf } from '../content/publication-key.ts'
import { reasonOf } from '../error.ts'
import type { Log } from '../log.ts'
import { type Database, migrate, transaction } from '../state/database.ts'
import { NarLayouts } from './nar-layouts.ts'
import type { NixStore, PathInfo } from './nix-store.ts'

/** Paths that were found missing, remembered so that each is logged once. */
const MISSING_MAX = PATHS_MAX

const SCHEMA = [
  `CREATE TABLE nix_published (
     artifact TEXT NOT NULL, path TEXT NOT NULL, digest TEXT NOT NULL, size_bytes INTEGER NOT NULL,
     PRIMARY KEY (artifact, path)
   ) STRICT;
   CREATE INDEX nix_published_path ON nix_published (path);
   CREATE INDEX nix_published_digest ON nix_published (digest);`,
  `ALTER TABLE nix_published ADD COLUMN is_root INTEGER NOT NULL DEFAULT 0;`,
]

/** The column `artifact` holds publications' keys. */
type Row = { path: string; digest: string; size_bytes: number }
type Deps = { db: Database; store: Pick<NixStore, 'info' | 'directory'>; log: Log }

export class NarSource implements BlobHolder {
  readonly #db: Database
  readonly #store: Deps['store']
  readonly #log: Log
  /** Asked for every request of a peer. */
  readonly #keysOf: StatementSync
  readonly #rowsOf: StatementSync
  readonly #pathFrom: StatementSync
  readonly #largest: StatementSync
  /** By digest, the one used last at the end. */
  readonly #layouts = new NarLayouts()
  /** Published paths that could not be had, and whether that was by Nix's database. */
  readonly #missing = new Map<string, { isDeleted: boolean }>()

  constructor({ db, store, log }: Deps) {
    migrate(db, 'nix', SCHEMA)
    this.#db = db
    this.#keysOf = db.prepare('SELECT DISTINCT artifact FROM nix_published WHERE digest = ?')
    this.#rowsOf = db.prepare('SELECT DISTINCT path, digest, size_bytes FROM nix_published WHERE digest = ?')
    this.#pathFrom = db.prepare(
      'SELECT path, digest, size_bytes FROM nix_published WHERE path >= ? ORDER BY path LIMIT 1',
    )
    this.#largest = db.prepare(
      'SELECT DISTINCT digest, size_bytes AS sizeBytes FROM nix_published ORDER BY size_bytes DESC, digest LIMIT ?',
    )
    this.#store = store
    this.#log = log
  }

  /** Shares the paths of a closure under a publication's key; whatever it shared before under this key, no longer. */
  publish(key: string, { root, paths }: Pick<ClosureManifest, 'root' | 'paths'>): void {
    transaction(this.#db, () => {
      this.#db.prepare('DELETE FROM nix_published WHERE artifact = ?').run(key)
      const insert = this.#db.prepare(
        'INSERT INTO nix_published (artifact, path, digest, size_bytes, is_root) VALUES (?, ?, ?, ?, ?)',
      )
      for (const [at, { path, nar, sizeBytes }] of paths.entries())
        insert.run(key, path, Buffer.from(nar).toString('hex'), sizeBytes, Number(at === root))
    })
    this.#missing.clear()
  }

  /** Shares them no longer, except those that another publication has too. */
  withdraw(key: string): void {
    this.#db.prepare('DELETE FROM nix_published WHERE artifact = ?').run(key)
  }

  /** The networks in which the path of a NAR is published. */
  networksOf(digest: Digest): Set<string> {
    return networksIn(this.#keysOf.all(digest))
  }

  /** Every network in which a path is published. */
  networks(): Set<string> {
    return networksIn(this.#db.prepare('SELECT DISTINCT artifact FROM nix_published').all())
  }

  /** This node left the network: what it published there is not shared there any more. */
  forgetNetwork(network: string): void {
    const rows = this.#db.prepare('SELECT DISTINCT artifact FROM nix_published').all() as { artifact: string }[]
    for (const { artifact: key } of rows) if (publicationOf(key).network === network) this.withdraw(key)
  }

  /** How many paths are shared. */
  get pathCount(): number {
    const row = this.#db.prepare('SELECT count(DISTINCT path) AS paths FROM nix_published').get() as { paths: number }
    return row.paths
  }

  /** What Nix says of the published path with this hash part, as long as it is what was published. */
  byHashPart(hashPart: string): PathInfo | undefined {
    const least = `${this.#store.directory}/${hashPart}`
    const row = this.#pathFrom.get(least) as Row | undefined
    return row?.path.startsWith(`${least}-`) ? this.#valid(row.path, row.digest) : undefined
  }

  /** The keys of the publications that a NAR is shared for. */
  keysOf(digest: Digest): string[] {
    return (this.#keysOf.all(digest) as { artifact: string }[]).map(({ artifact }) => artifact)
  }

  /** The size of a published NAR. */
  sizeOf(digest: Digest): number | undefined {
    return this.#rows(digest)[0]?.size_bytes
  }

  /** Published NARs, the largest first. */
  largest(limit: number): { digest: Digest; sizeBytes: number }[] {
    return this.#largest.all(limit) as { digest: Digest; sizeBytes: number }[]
  }

  /** The store path of a published NAR. */
  pathOf(digest: Digest): string | undefined {
    return this.#rows(digest)[0]?.path
  }

  /**
   * Published paths that are not in the store any more as they were published: those that somebody asked for in vain, and the roots of
   * closures, which are looked at now. Nix deletes nothing that a root needs, so whatever it deletes, a root is gone.
   */
  missingPaths(): ReadonlySet<string> {
    const all = this.#db.prepare('SELECT path, digest FROM nix_published WHERE is_root = 1').all() as Row[]
    for (const { path, digest } of all) this.#valid(path, digest)
    const ofPath = this.#db.prepare('SELECT path, digest FROM nix_published WHERE path = ?')
    for (const [path, { isDeleted }] of this.#missing) {
      const rows = ofPath.all(path) as Row[]
      const isBack = isDeleted && rows.some(({ digest }) => this.#valid(path, digest))
      if (rows.length === 0 || isBack) this.#missing.delete(path)
    }
    return new Set(this.#missing.keys())
  }

  async open(digest: Digest): Promise<BlobSource | undefined> {
    // Paths of different names may have the same contents; any that is still there will do.
    for (const { path, size_bytes: sizeBytes } of this.#rows(digest)) {
      if (!this.#valid(path, digest)) continue
      try {
        // A layout that is kept does not notice that its path was deleted; this does.
        await lstat(path)
        const layout = await this.#layouts.of(digest, path)
        if (layout.sizeBytes === sizeBytes) return this.#source(digest, path, layout)
        this.#gone(path, false, `its NAR has ${layout.sizeBytes} bytes, not the ${sizeBytes} that Nix knows`)
      } catch (error) {
        this.#gone(path, false, reasonOf(error))
      }
      this.#layouts.forget(digest)
    }
    return undefined
  }

  #source(digest: Digest, path: string, layout: NarLayout): BlobSource {
    return {
      sizeBytes: layout.sizeBytes,
      read: (offset, length, signal) => layout.read(offset, length, signal),
      reportCorrupt: () => {
        this.#layouts.forget(digest)
        this.#gone(path, false, 'its files are not those that Nix registered; `nix-store --verify-path` says more')
      },
    }
  }

  #rows(digest: Digest): Row[] {
    return this.#rowsOf.all(digest) as Row[]
  }

  #valid(path: string, digest: Digest): PathInfo | undefined {
    try {
      const info = this.#store.info(path)
      if (info?.narHash === digest) return info
      this.#gone(path, true, info ? 'it was built again, with other contents' : 'Nix has deleted it')
    } catch (error) {
      this.#gone(path, true, reasonOf(error))
    }
    return undefined
  }

  #gone(path: string, isDeleted: boolean, reason: string): void {
    if (this.#missing.has(path) || this.#missing.size >= MISSING_MAX) return
    this.#missing.set(path, { isDeleted })
    this.#log.warn({ path, reason }, 'nix.path-gone')
  }
}

function networksIn(rows: unknown[]): Set<string> {
  return new Set((rows as { artifact: string }[]).map(({ artifact: key }) => publicationOf(key).network))
}

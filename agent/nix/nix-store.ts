/**
 * A read-only view of the Nix store that is installed on this machine, by Nix's own database. Never writes, and needs no privilege
 * beyond reading; Nix itself may be installed, upgraded or removed while the agent runs.
 *
 * While nobody has Nix's database open its WAL files are absent, and a reader that may not create them cannot open it in the normal way.
 * It is then opened as immutable: right as long as nobody writes, so each use opens it afresh.
 */
import { existsSync, statSync } from 'node:fs'
import { DatabaseSync } from 'node:sqlite'
import { pathToFileURL } from 'node:url'
import { type Digest, PATHS_MAX } from '../../protocols/artifact/artifact.ts'
import { AgentError, reasonOf } from '../error.ts'
import { decodeNix32 } from './nix32.ts'

/** Readers are not kept waiting by writers in WAL mode; only a recovery after a crash makes one wait. Waiting stops the whole agent. */
const BUSY_MS = 250

/** What Nix says of a valid path. */
export type PathInfo = {
  path: string
  narHash: Digest
  narSize: number
  /** Full paths, sorted; a path may refer to itself. */
  references: string[]
  /** Each `name:base64`. */
  signatures: string[]
  /** Nix's content address, of paths that have one. */
  ca: string | undefined
  /** Full path of the derivation that made it. */
  deriver: string | undefined
  /** Built on this machine. */
  ultimate: boolean
}

type Row = {
  id: number
  path: string
  hash: string
  narSize: number
  sigs: string | null
  ca: string | null
  deriver: string | null
  ultimate: number | null
}

/** A valid path, in short. Of ids a later path has a higher one, and none is used twice. */
type StoreRow = { id: number; path: string; narHash: Digest }

type Opened = { db: DatabaseSync; inode: bigint; immutable: boolean }

export class NixStore implements Disposable {
  /** `/nix/store`, without a slash at the end. */
  readonly directory: string
  readonly #databasePath: string
  #opened: Opened | undefined

  constructor(directory: string, databasePath: string) {
    this.directory = directory
    this.#databasePath = databasePath
  }

  /** The store that Nix itself would use in this environment, whether it exists yet or not. */
  static ofMachine(env: Readonly<Record<string, string | undefined>> = process.env): NixStore {
    const state = env.NIX_STATE_DIR ?? '/nix/var/nix'
    return new NixStore(env.NIX_STORE_DIR ?? '/nix/store', `${state}/db/db.sqlite`)
  }

  /** Whether there is a Nix here. */
  get isInstalled(): boolean {
    return existsSync(this.#databasePath)
  }

  /** The store path that `path` is or lies in: `/nix/store/<hash>-<name>`; undefined when it is elsewhere. */
  storePathOf(path: string): string | undefined {
    if (!path.startsWith(`${this.directory}/`)) return undefined
    const [name = ''] = path.slice(this.directory.length + 1).split('/', 1)
    return /^[0-9a-df-np-sv-z]{32}-./.test(name) ? `${this.directory}/${name}` : undefined
  }

  /** What Nix knows of a store path; undefined when it is not valid. @throws {AgentError} `failed` */
  info(path: string): PathInfo | undefined {
    return this.#query((db) => infoOf(db, 'path = ?', path))
  }

  /** The path with this hash part. @throws {AgentError} `failed` */
  byHashPart(hashPart: string): PathInfo | undefined {
    const least = `${this.directory}/${hashPart}`
    const found = this.#query((db) => infoOf(db, 'path >= ? ORDER BY path LIMIT 1', least))
    return found?.path.startsWith(`${least}-`) ? found : undefined
  }

  /** By its id. @throws {AgentError} `failed` */
  byId(id: number): PathInfo | undefined {
    return this.#query((db) => infoOf(db, 'id = ?', id))
  }

  /**
   * A text that is another one whenever Nix has written to its database, and which file that is; undefined while there is none. Costs three
   * calls of the system.
   */
  stamp(): { inode: bigint; text: string } | undefined {
    const [file, log] = ['', '-wal'].map((suffix) =>
      statSync(`${this.#databasePath}${suffix}`, { bigint: true, throwIfNoEntry: false }),
    )
    if (file === undefined) return undefined
    return { inode: file.ino, text: `${file.ino} ${file.mtimeNs} ${file.size} ${log?.mtimeNs} ${log?.size}` }
  }

  /** Valid paths with ids above one, by id. @throws {AgentError} `failed` */
  rowsAfter(id: number, limit: number): StoreRow[] {
    const statement = 'SELECT id, path, hash FROM ValidPaths WHERE id > ? AND narSize > 0 ORDER BY id LIMIT ?'
    const rows = this.#query((db) => db.prepare(statement).all(id, limit)) as Pick<Row, 'id' | 'path' | 'hash'>[]
    return (rows ?? []).map(({ hash, ...row }) => ({ ...row, narHash: digestOf(hash) ?? '' }))
  }

  /** Ids of what these refer to; with `isUp`, of what refers to them. @throws {AgentError} `failed` */
  neighbours(ids: readonly number[], isUp: boolean): { of: number; id: number }[] {
    const [from, to] = isUp ? ['reference', 'referrer'] : ['referrer', 'reference']
    const found = this.#query((db) => {
      const statement = db.prepare(`SELECT ${from} AS "of", ${to} AS id FROM Refs WHERE ${from} = ?`)
      return ids.flatMap((id) => statement.all(id) as { of: number; id: number }[])
    })
    return found ?? []
  }

  /**
   * A path and all that it needs, sorted by path; undefined when it is not valid.
   *
   * @throws {AgentError} `limit` over PATHS_MAX paths, `failed`
   */
  closure(root: string): PathInfo[] | undefined {
    return this.#query((db) => {
      const found = new Map<string, PathInfo>()
      const waiting = [root]
      for (let path = waiting.pop(); path !== undefined; path = waiting.pop()) {
        if (found.has(path)) continue
        const info = infoOf(db, 'path = ?', path)
        if (!info) {
          if (path === root) return undefined
          throw new AgentError('failed', `${path} is referred to, but not valid`, { next: 'Run `nix-store --verify`.' })
        }
        found.set(path, info)
        if (found.size > PATHS_MAX) {
          throw new AgentError('limit', `the closure of ${root} has more than ${PATHS_MAX} paths`)
        }
        waiting.push(...info.references)
      }
      return [...found.values()].sort(byPath)
    })
  }

  [Symbol.dispose](): void {
    this.#close()
  }

  #query<T>(work: (db: DatabaseSync) => T | undefined): T | undefined {
    const inode = statSync(this.#databasePath, { bigint: true, throwIfNoEntry: false })?.ino
    if (inode === undefined) {
      this.#close()
      return undefined
    }
    try {
      if (this.#opened?.inode !== inode || this.#opened.immutable) {
        this.#close()
        this.#opened = { ...open(this.#databasePath), inode }
      }
      return work(this.#opened.db)
    } catch (cause) {
      if (cause instanceof AgentError) throw cause
      this.#close()
      throw new AgentError('failed', `Nix's database ${this.#databasePath} cannot be read: ${reasonOf(cause)}`, {
        cause,
        next: 'The agent needs to read this file and the directory that it is in.',
      })
    }
  }

  #close(): void {
    this.#opened?.db.close()
    this.#opened = undefined
  }
}

function open(path: string): { db: DatabaseSync; immutable: boolean } {
  const db = new DatabaseSync(path, { readOnly: true, timeout: BUSY_MS })
  try {
    db.prepare('SELECT 1 FROM ValidPaths LIMIT 1').get()
    return { db, immutable: false }
  } catch (error) {
    db.close()
    // With a WAL file there may be changes that only it holds.
    if (existsSync(`${path}-wal`)) throw error
  }
  const url = pathToFileURL(path)
  url.searchParams.set('immutable', '1')
  return { db: new DatabaseSync(url, { readOnly: true }), immutable: true }
}

function infoOf(db: DatabaseSync, condition: string, value: string | number): PathInfo | undefined {
  const columns = 'id, path, hash, narSize, sigs, ca, deriver, ultimate'
  const row = db.prepare(`SELECT ${columns} FROM ValidPaths WHERE ${condition}`).get(value) as Row | undefined
  // Very old databases have paths without a size; Nix computes it when it is asked for.
  if (!row?.narSize) return undefined
  const narHash = digestOf(row.hash)
  if (narHash === undefined) return undefined
  const references = db
    .prepare('SELECT path FROM Refs JOIN ValidPaths ON reference = id WHERE referrer = ? ORDER BY path')
    .all(row.id) as { path: string }[]
  return {
    path: row.path,
    narHash,
    narSize: row.narSize,
    references: references.map(({ path }) => path),
    signatures: row.sigs?.split(' ').filter((signature) => signature !== '') ?? [],
    ca: row.ca ?? undefined,
    deriver: row.deriver ?? undefined,
    ultimate: row.ultimate === 1,
  }
}

/** `sha256:` and hexadecimal digits; some versions write base 32. */
function digestOf(hash: string): Digest | undefined {
  if (!hash.startsWith('sha256:')) return undefined
  const text = hash.slice('sha256:'.length)
  if (/^[0-9a-f]{64}$/.test(text)) return text
  const bytes = decodeNix32(text, 32)
  return bytes && Buffer.from(bytes).toString('hex')
}

function byPath(one: { path: string }, other: { path: string }): number {
  return one.path < other.path ? -1 : 1
}

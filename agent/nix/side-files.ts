/**
 * The small files that a binary cache has beside its paths: build logs (`log/<derivation>`) and realisations (`realisations/<id>.doi`). Those
 * that were pushed are kept as blobs, as long as there is room; logs of builds on this machine are read where Nix keeps them. They are for
 * the local Nix only: no record names them, and no peer is given them. Nothing is signed here: Nix checks realisations by their own signatures.
 */
import { createReadStream } from 'node:fs'
import { access } from 'node:fs/promises'
import type { Digest } from '../../protocols/artifact/artifact.ts'
import type { BlobStore } from '../content/content.ts'
import { AgentError } from '../error.ts'
import { type Database, migrate } from '../state/database.ts'

/** Of a log; a realisation is a kilobyte. */
const FILE_BYTES_MAX = 64 * 1024 * 1024
/** Rows; the oldest go first. */
const ROWS_MAX = 100_000
const LOG_PATTERN = /^log\/([0-9a-df-np-sv-z]{2})([0-9a-df-np-sv-z]{30}-[0-9a-zA-Z+\-._?=]{1,211}\.drv)$/
const REALISATION_PATTERN = /^realisations\/sha256:[0-9a-f]{64}![0-9a-zA-Z+\-._?=]{1,64}\.doi$/
/** As Nix keeps logs: compressed or not, by its setting `compress-build-log`. */
const LOG_ENDINGS = [
  { ending: '.bz2', encoding: 'bzip2' },
  { ending: '', encoding: undefined },
] as const

const SCHEMA = [
  `CREATE TABLE nix_side_files (
     name TEXT PRIMARY KEY, digest TEXT NOT NULL, encoding TEXT, since_ms INTEGER NOT NULL
   ) STRICT, WITHOUT ROWID;
   CREATE INDEX nix_side_files_since ON nix_side_files (since_ms);`,
]

export type SideFile = {
  bytes: AsyncIterable<Uint8Array>
  /** As in Content-Encoding. */
  encoding: string | undefined
  /** Gives back what is held open. Idempotent. */
  close: () => Promise<void>
}

type Deps = {
  db: Database
  blobs: Pick<BlobStore, 'open' | 'write'>
  /** Where Nix has its logs, `/nix/var/log/nix`. */
  logDirectory: string
}

export class SideFiles {
  readonly #deps: Deps

  constructor(deps: Deps) {
    migrate(deps.db, 'nix-side-files', SCHEMA)
    this.#deps = deps
  }

  /** Whether it is the name of such a file, `log/...`. */
  isName(name: string): boolean {
    return LOG_PATTERN.test(name) || REALISATION_PATTERN.test(name)
  }

  /** Keeps a file as it was sent. @throws {AgentError} `not-found` for another name, `limit` */
  async put(
    name: string,
    encoding: string | undefined,
    chunks: AsyncIterable<Uint8Array>,
    signal: AbortSignal,
  ): Promise<void> {
    if (!this.isName(name)) throw new AgentError('not-found', `${name.slice(0, 100)} is not kept here`)
    const { digest } = await this.#deps.blobs.write(undefined, bounded(chunks), signal)
    const { db } = this.#deps
    db.prepare('INSERT OR REPLACE INTO nix_side_files VALUES (?, ?, ?, ?)').run(
      name,
      digest,
      encoding ?? null,
      Date.now(),
    )
    const { rows } = db.prepare('SELECT count(*) AS rows FROM nix_side_files').get() as { rows: number }
    if (rows > ROWS_MAX)
      db.prepare(
        'DELETE FROM nix_side_files WHERE name IN (SELECT name FROM nix_side_files ORDER BY since_ms LIMIT ?)',
      ).run(rows - ROWS_MAX)
  }

  /** undefined when it is not here. */
  async open(name: string, signal: AbortSignal): Promise<SideFile | undefined> {
    const row = this.#deps.db.prepare('SELECT digest, encoding FROM nix_side_files WHERE name = ?').get(name)
    const { digest, encoding } = (row ?? {}) as { digest?: Digest; encoding?: string | null }
    const source = digest === undefined ? undefined : await this.#deps.blobs.open(digest)
    if (source === undefined) return await this.#localLog(name)
    return {
      bytes: source.read(0, source.sizeBytes, signal),
      encoding: encoding ?? undefined,
      close: async () => source.close?.(),
    }
  }

  async #localLog(name: string): Promise<SideFile | undefined> {
    const [, first, rest] = LOG_PATTERN.exec(name) ?? []
    if (first === undefined || rest === undefined) return undefined
    for (const { ending, encoding } of LOG_ENDINGS) {
      const path = `${this.#deps.logDirectory}/drvs/${first}/${rest}${ending}`
      const isHere = await access(path).then(
        () => true,
        () => false,
      )
      if (!isHere) continue
      const bytes = createReadStream(path)
      return { bytes, encoding, close: async () => void bytes.destroy() }
    }
    return undefined
  }
}

async function* bounded(chunks: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  let bytes = 0
  for await (const chunk of chunks) {
    bytes += chunk.byteLength
    if (bytes > FILE_BYTES_MAX) throw new AgentError('limit', `more than ${FILE_BYTES_MAX} bytes`)
    yield chunk
  }
}

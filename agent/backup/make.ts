/**
 * Makes a backup of a node that runs: copies of its databases, each as it is at one moment, and its keys and configuration.
 *
 * Databases are copied by SQLite beside the event loop. All that is written on the way is in `backup.new` in the state directory, which is for the
 * owner only; what a crash leaves of it goes at the next backup or start.
 */
import { createHash } from 'node:crypto'
import { createReadStream, createWriteStream, existsSync, mkdirSync, readdirSync, rmSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { backup, DatabaseSync } from 'node:sqlite'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { createGzip } from 'node:zlib'
import { AgentError } from '../error.ts'
import { encrypterFor } from '../identity/passphrase.ts'
import { databaseFiles } from '../state/directory.ts'
import { type TarFile, writeTar } from '../tar.ts'
import { type BackupManifest, CONFIG_FILE, KEY_DIRECTORY, MANIFEST } from './format.ts'

/** In the state directory. */
const WORK = 'backup.new'
/** What is another agent's, or nobody's: the lock, sockets, SQLite's logs, copies from before an upgrade, logs of what happened. */
const LEFT_OUT = /^(lock|lock-.*|holder\.json|.*\.sock|.*-wal|.*-shm|.*\.db|.*\.before-upgrade|.*\.new|audit\.log.*)$/
/** Of SQLite's: all pages of any database. */
const PAGES_ALL = 2 ** 31 - 1
/** Keys and notes are some KB. What is larger is none of them. */
const FILE_BYTES_MAX = 1024 * 1024

export type BackupSource = {
  /** The state directory. */
  directory: string
  /** Of the configuration; undefined when there is none. */
  configFile: string | undefined
  node: Pick<BackupManifest, 'version' | 'peerId' | 'name'>
  /** age's own, smaller for a test. */
  workFactor?: number
  now?: () => number
}

/** What a crash left of one. */
export function clearBackup(directory: string): void {
  rmSync(join(directory, WORK), { recursive: true, force: true })
}

/**
 * The path of an encrypted backup, which is the caller's to read and to `clearBackup`.
 *
 * @throws {AgentError} `taken` when one is being made, `usage` when the passphrase is too short
 */
export async function makeBackup(source: BackupSource, passphrase: string): Promise<string> {
  const { directory, configFile, node, now = Date.now } = source
  const encrypter = await encrypterFor(passphrase, source.workFactor)
  const work = join(directory, WORK)
  if (existsSync(work)) throw new AgentError('taken', 'a backup is being made already', { next: 'Wait for that one.' })
  mkdirSync(work, { mode: 0o700 })
  try {
    const databases = databaseFiles(directory)
    mkdirSync(join(work, KEY_DIRECTORY), { mode: 0o700 })
    const schema: Record<string, number> = {}
    for (const name of databases) await copyDatabase(join(directory, name), join(work, name), schema)
    const paths = new Map(databases.map((name) => [name, join(work, name)]))
    for (const name of keptFiles(directory)) paths.set(name, join(directory, name))
    if (configFile !== undefined && existsSync(configFile)) paths.set(CONFIG_FILE, configFile)
    const files: BackupManifest['files'] = []
    for (const [name, path] of paths) files.push({ name, ...(await measure(path)) })
    const madeMs = now()
    const manifest: BackupManifest = { v: 1, ...node, made: new Date(madeMs).toISOString(), schema, files }
    const plain = Readable.from(writeTar(entries(manifest, paths), madeMs)).pipe(createGzip())
    const sealed = await encrypter.encrypt(Readable.toWeb(plain) as ReadableStream<Uint8Array>)
    const out = join(work, 'backup.age')
    const bytes = Readable.fromWeb(sealed as Parameters<typeof Readable.fromWeb>[0])
    await pipeline(bytes, createWriteStream(out, { flags: 'wx', mode: 0o600 }))
    for (const name of databases) rmSync(join(work, name))
    return out
  } catch (error) {
    clearBackup(directory)
    throw error
  }
}

/** As it is at one moment, whoever writes meanwhile. */
async function copyDatabase(from: string, to: string, schema: Record<string, number>): Promise<void> {
  const db = new DatabaseSync(from)
  try {
    db.exec('PRAGMA busy_timeout = 5000')
    // In one go: a page that is written meanwhile would have it begin anew.
    await backup(db, to, { rate: PAGES_ALL })
  } finally {
    db.close()
  }
  const copy = new DatabaseSync(to)
  try {
    // One file, without a log beside it.
    copy.exec('PRAGMA journal_mode = DELETE; DROP TABLE IF EXISTS schema_upgrade')
    const rows = copy.prepare('SELECT part, version FROM schema_versions').all() as { part: string; version: number }[]
    for (const { part, version } of rows) schema[part] = Math.max(version, schema[part] ?? 0)
  } finally {
    copy.close()
  }
}

function keptFiles(directory: string): string[] {
  const isKept = (path: string) => {
    const stats = statSync(join(directory, path), { throwIfNoEntry: false })
    return stats?.isFile() === true && stats.size <= FILE_BYTES_MAX
  }
  const own = readdirSync(directory).filter((name) => !LEFT_OUT.test(name))
  const keys = existsSync(join(directory, KEY_DIRECTORY)) ? readdirSync(join(directory, KEY_DIRECTORY)) : []
  return [...own, ...keys.filter((name) => !LEFT_OUT.test(name)).map((name) => `${KEY_DIRECTORY}/${name}`)].filter(
    isKept,
  )
}

async function measure(path: string): Promise<{ sizeBytes: number; sha256: string }> {
  const hash = createHash('sha256')
  let sizeBytes = 0
  for await (const chunk of createReadStream(path) as AsyncIterable<Buffer>) {
    hash.update(chunk)
    sizeBytes += chunk.byteLength
  }
  return { sizeBytes, sha256: hash.digest('hex') }
}

function* entries(manifest: BackupManifest, paths: ReadonlyMap<string, string>): Generator<TarFile> {
  const text = Buffer.from(JSON.stringify(manifest, undefined, 2))
  yield { name: MANIFEST, sizeBytes: text.byteLength, bytes: [text] }
  for (const { name, sizeBytes } of manifest.files)
    yield { name, sizeBytes, bytes: createReadStream(paths.get(name) ?? '') as AsyncIterable<Buffer> }
}

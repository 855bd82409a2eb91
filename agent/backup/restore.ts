/**
 * Puts a backup into a state directory in which no agent runs, and old databases back after an upgrade.
 *
 * All of the backup is read and checked before anything that is there is touched. What is there then moves aside, into `replaced-<time>`. In between
 * there is a directory `restoring`, and while there is, no agent starts: a kill in the middle must not make a node with a new identity. Restoring
 * again goes on from there.
 */
import {
  chownSync,
  closeSync,
  createWriteStream,
  existsSync,
  fsyncSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { dirname, join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { AgentError } from '../error.ts'
import { loadNodeKey } from '../identity/node-key.ts'
import { databaseFiles, RESTORING, StateDirectory } from '../state/directory.ts'
import { SCHEMA_VERSIONS } from '../state/schema.ts'
import { COPY_SUFFIX } from '../state/upgrade.ts'
import { type BackupManifest, CONFIG_FILE, KEY_DIRECTORY } from './format.ts'
import { readBackup } from './read.ts'

/** What is being read from a backup, and may be damaged. */
const ARRIVING = 'restore.new'
/** What stays where it is: content is named by its hash, and the rest is of who runs. */
const STAYS = /^(blobs|lock|lock-.*|holder\.json|restoring|restore\.new|replaced-.*|.*\.sock)$/

export type RestoreOptions = {
  /** The backup, and the state directory that it is put into. */
  file: string
  directory: string
  passphrase: string
  /** Where the configuration goes, if there is none. */
  configFile: string
  /** Whether what is there may be put aside. */
  replace: boolean
  now?: () => Date
}

export type Restored = {
  manifest: BackupManifest
  /** Where what was there is now. */
  replaced: string | undefined
  /** Where the configuration of the backup is; undefined when it has none, or the same is there. */
  config: string | undefined
}

/**
 * @throws {AgentError} `taken` when an agent runs on the state, or when there is a node already and it is not to be replaced; `failed` when a newer agent
 *   made the backup; what readBackup throws
 */
export async function restoreBackup(options: RestoreOptions): Promise<Restored> {
  const { file, directory, passphrase, configFile, replace, now = () => new Date() } = options
  using state = StateDirectory.open(directory, { evenRestoring: true })
  const isUnfinished = existsSync(state.file(RESTORING))
  if (!replace && !isUnfinished && existsSync(state.file('node.key'))) throw thereIsOne(directory)
  const arriving = state.file(ARRIVING)
  rmSync(arriving, { recursive: true, force: true })
  mkdirSync(join(arriving, KEY_DIRECTORY), { recursive: true, mode: 0o700 })
  mkdirSync(join(arriving, dirname(CONFIG_FILE)), { mode: 0o700 })
  try {
    const keep = (name: string, bytes: AsyncIterable<Uint8Array>) => writeFile(join(arriving, name), bytes)
    const manifest = await readBackup(file, passphrase, keep, refuseNewer)
    checkFiles(arriving, manifest)
    rmSync(state.file(RESTORING), { recursive: true, force: true })
    renameSync(arriving, state.file(RESTORING))
    sync(directory)
    const replaced = putAside(directory, now())
    for (const name of readdirSync(state.file(RESTORING)))
      if (name !== dirname(CONFIG_FILE)) renameSync(state.file(join(RESTORING, name)), state.file(name))
    const config = putConfig(state.file(join(RESTORING, CONFIG_FILE)), configFile, directory)
    giveToOwner(directory, [...manifest.files.map(({ name }) => name), KEY_DIRECTORY])
    sync(directory)
    rmSync(state.file(RESTORING), { recursive: true })
    sync(directory)
    return { manifest, replaced, config }
  } catch (error) {
    rmSync(arriving, { recursive: true, force: true })
    throw error
  }
}

/**
 * Puts the databases back that were kept before an upgrade.
 *
 * @throws {AgentError} `not-found` when there are none
 */
export function undoUpgrade(directory: string, now = () => new Date()): { databases: string[]; replaced: string } {
  using state = StateDirectory.open(directory)
  const copies = databaseFiles(directory, COPY_SUFFIX)
  if (copies.length === 0)
    throw new AgentError('not-found', `there is no copy from before an upgrade in ${directory}`, {
      next: 'Copies are kept for a month. Install the newer agent again, or restore a backup.',
    })
  const replaced = asideName(directory, now())
  mkdirSync(state.file(join(replaced, KEY_DIRECTORY)), { recursive: true, mode: 0o700 })
  const databases = copies.map((copy) => copy.slice(0, -COPY_SUFFIX.length))
  for (const database of databases) {
    for (const suffix of ['', '-wal', '-shm']) {
      const path = state.file(`${database}${suffix}`)
      if (existsSync(path)) renameSync(path, state.file(join(replaced, `${database}${suffix}`)))
    }
    renameSync(state.file(`${database}${COPY_SUFFIX}`), state.file(database))
  }
  giveToOwner(directory, [replaced])
  sync(directory)
  return { databases, replaced: state.file(replaced) }
}

function refuseNewer({ schema, version }: BackupManifest): void {
  const newer = Object.entries(schema).filter(([part, at]) => at > (SCHEMA_VERSIONS[part] ?? at))
  if (newer.length === 0) return
  throw new AgentError('failed', `the backup was made by a newer agent (${version}); this one would lose some of it`, {
    next: 'Install an agent as new as that, and restore with it.',
  })
}

/** That the bytes are those of the backup is known by now; this finds what was wrong when it was made. */
function checkFiles(directory: string, { peerId, files }: BackupManifest): void {
  const key = loadNodeKey(join(directory, 'node.key'))
  if (key?.peerId !== peerId)
    throw new AgentError('corrupt', 'the key in the backup is not that of the node that it names')
  for (const { name } of files) {
    if (!name.endsWith('.db')) continue
    const db = new DatabaseSync(join(directory, name), { readOnly: true })
    try {
      const { quick_check } = db.prepare('PRAGMA quick_check(1)').get() as { quick_check: string }
      if (quick_check !== 'ok')
        throw new AgentError('corrupt', `the database ${name} in the backup is damaged: ${quick_check}`)
    } finally {
      db.close()
    }
  }
}

async function writeFile(path: string, bytes: AsyncIterable<Uint8Array>): Promise<void> {
  await pipeline(Readable.from(bytes), createWriteStream(path, { flags: 'wx', mode: 0o600, flush: true }))
}

/** Where there is none it takes its place; beside another it is left in the state directory. */
function putConfig(from: string, to: string, directory: string): string | undefined {
  if (!existsSync(from)) return undefined
  const text = readFileSync(from)
  if (existsSync(to) && readFileSync(to).equals(text)) return undefined
  const path = existsSync(to) ? join(directory, 'agent.toml.restored') : to
  mkdirSync(dirname(path), { recursive: true })
  writeFileSync(path, text, { mode: 0o644 })
  return path
}

function putAside(directory: string, time: Date): string | undefined {
  const there = readdirSync(directory).filter((name) => !STAYS.test(name) && name !== 'agent.toml.restored')
  if (there.length === 0) return undefined
  const name = asideName(directory, time)
  const aside = join(directory, name)
  mkdirSync(aside, { mode: 0o700 })
  for (const one of there) renameSync(join(directory, one), join(aside, one))
  giveToOwner(directory, [name])
  return aside
}

/** root restores for a service, which has a user of its own: that of the directory. */
function giveToOwner(directory: string, names: readonly string[]): void {
  if (process.getuid?.() !== 0) return
  const { uid, gid } = lstatSync(directory)
  const give = (path: string) => {
    if (!existsSync(path)) return
    chownSync(path, uid, gid)
    if (lstatSync(path).isDirectory()) for (const name of readdirSync(path)) give(join(path, name))
  }
  for (const name of names) give(join(directory, name))
}

function thereIsOne(directory: string): AgentError {
  return new AgentError('taken', `there is a node in ${directory} already`, {
    next: 'With --replace it makes room: what is there moves aside, into a directory beside the new files. Or restore into another one with --state.',
  })
}

/** `replaced-2026-11-23T01-02-03Z`, which nothing has yet. */
function asideName(directory: string, time: Date): string {
  const name = `replaced-${time
    .toISOString()
    .replace(/\.\d+Z$/, 'Z')
    .replaceAll(':', '-')}`
  for (let count = 1; ; count++) {
    const tried = count === 1 ? name : `${name}-${count}`
    if (!existsSync(join(directory, tried))) return tried
  }
}

function sync(path: string): void {
  const fd = openSync(path, 'r')
  fsyncSync(fd)
  closeSync(fd)
}

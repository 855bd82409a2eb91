/**
 * Between versions of the agent: a database that a newer one wrote is refused before anything of it is touched, and of one that is about to be
 * changed a copy is kept, `<database>.before-upgrade`, so that there is a way back.
 *
 * The copy is made once an upgrade, and whole or not at all: when the agent is killed in the middle of an upgrade, the next start goes on with
 * what is left of it and leaves the copy alone. It goes after COPY_MS_MAX, or when a network is left: there are secrets in it.
 */
import { chmodSync, closeSync, existsSync, fsyncSync, openSync, renameSync, rmSync, statSync } from 'node:fs'
import { dirname } from 'node:path'
import type { DatabaseSync } from 'node:sqlite'
import { AgentError } from '../error.ts'
import { SCHEMA_VERSIONS } from './schema.ts'

export const COPY_SUFFIX = '.before-upgrade'
/** Of a copy that is being written. */
const PARTIAL_SUFFIX = '.before-upgrade.new'
/** Whoever has not gone back by then stays. */
const COPY_MS_MAX = 30 * 24 * 3_600_000

type Version = { part: string; version: number }

/** @throws {AgentError} `failed` when a newer agent wrote it */
export function refuseNewer(db: DatabaseSync, path: string): void {
  const newer = versionsIn(db).filter(({ part, version }) => version > (SCHEMA_VERSIONS[part] ?? version))
  if (newer.length > 0) throw newerError(newer, path)
}

/** Keeps a copy of a database that older agents wrote, before anything of it is changed. To be called when it is opened. */
export function keepCopy(db: DatabaseSync, path: string): void {
  const isPending = versionsIn(db).some(({ part, version }) => version < (SCHEMA_VERSIONS[part] ?? version))
  const copy = `${path}${COPY_SUFFIX}`
  if (!isPending) {
    db.exec('DROP TABLE IF EXISTS schema_upgrade')
    if (isOld(copy)) rmSync(copy, { force: true })
    return
  }
  const target = JSON.stringify(SCHEMA_VERSIONS)
  if (existsSync(copy) && begunFor(db) === target) return
  const partial = `${path}${PARTIAL_SUFFIX}`
  rmSync(partial, { force: true })
  db.prepare('VACUUM INTO ?').run(partial)
  chmodSync(partial, 0o600)
  sync(partial)
  renameSync(partial, copy)
  sync(dirname(path))
  db.exec('CREATE TABLE IF NOT EXISTS schema_upgrade (target TEXT NOT NULL) STRICT')
  db.exec('DELETE FROM schema_upgrade')
  db.prepare('INSERT INTO schema_upgrade VALUES (?)').run(target)
}

/** What was in the database is to be nowhere any more. */
export function dropCopy(path: string): void {
  for (const suffix of [COPY_SUFFIX, PARTIAL_SUFFIX]) rmSync(`${path}${suffix}`, { force: true })
}

/** For which versions an upgrade was begun that has not been seen to end. */
function begunFor(db: DatabaseSync): string | undefined {
  const isThere = db.prepare("SELECT 1 FROM sqlite_master WHERE name = 'schema_upgrade'").get() !== undefined
  const row = isThere ? db.prepare('SELECT target FROM schema_upgrade').get() : undefined
  return (row as { target: string } | undefined)?.target
}

function versionsIn(db: DatabaseSync): Version[] {
  return db.prepare('SELECT part, version FROM schema_versions ORDER BY part').all() as Version[]
}

function isOld(path: string): boolean {
  const stats = statSync(path, { throwIfNoEntry: false })
  return stats !== undefined && Date.now() - stats.mtimeMs > COPY_MS_MAX
}

function newerError(newer: readonly Version[], path: string): AgentError {
  const parts = newer.map(({ part, version }) => `${part} ${version}, known here: ${SCHEMA_VERSIONS[part]}`)
  const copied = statSync(`${path}${COPY_SUFFIX}`, { throwIfNoEntry: false })?.mtime.toISOString().slice(0, 10)
  const back = copied
    ? ` \`agent restore --before-upgrade\` goes back to the state of ${copied}: what came since then is lost here.`
    : ' Or use another directory with --state.'
  return new AgentError(
    'failed',
    `the state in ${path} was written by a newer agent (${parts.join('; ')}); this one would lose some of it`,
    { next: `Install the newer agent again.${back}` },
  )
}

function sync(path: string): void {
  const fd = openSync(path, 'r')
  fsyncSync(fd)
  closeSync(fd)
}

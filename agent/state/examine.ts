/** What can be seen of a state directory in which no agent runs, for `agent doctor`. Changes nothing. */
import { existsSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { AgentError, reasonOf } from '../error.ts'
import { databaseFiles, RESTORING } from './directory.ts'
import { refuseNewer } from './upgrade.ts'

export type StateFinding = { id: string; state: 'ok' | 'warning' | 'failed'; message: string; next?: string }

export function examineState(directory: string): StateFinding[] {
  const findings: StateFinding[] = []
  if (existsSync(join(directory, RESTORING))) {
    const next = 'Run `agent restore` again with the same file: it goes on from there.'
    const message = `a backup was being restored into ${directory}, and that was not ended`
    findings.push({ id: 'restore.unfinished', state: 'failed', message, next })
  }
  const databases = databaseFiles(directory)
  const found = databases.flatMap((name) => examineDatabase(join(directory, name)) ?? [])
  if (found.length > 0 || databases.length === 0) return [...findings, ...found]
  return [...findings, { id: 'database', state: 'ok', message: `${databases.length} databases are sound` }]
}

function examineDatabase(path: string): StateFinding | undefined {
  // Looked at first: to open the database is to recover it.
  const log = statSync(`${path}-wal`, { throwIfNoEntry: false })
  let db: DatabaseSync | undefined
  try {
    db = new DatabaseSync(path, { readOnly: true })
    const { quick_check } = db.prepare('PRAGMA quick_check(1)').get() as { quick_check: string }
    if (quick_check !== 'ok') return corrupt(path, quick_check)
    refuseNewer(db, path)
  } catch (error) {
    if (!(error instanceof AgentError)) return corrupt(path, reasonOf(error))
    return { id: 'state.newer', state: 'failed', message: error.message, next: error.next ?? '' }
  } finally {
    db?.close()
  }
  if (log === undefined || log.size === 0) return undefined
  return {
    id: 'database.unclean',
    state: 'warning',
    message: `the agent did not end as it should: ${path} has a log that is not worked in`,
    next: 'Nothing is lost: `agent start` works it in. If it ends so again, `journalctl -u undernet` tells why.',
  }
}

function corrupt(path: string, reason: string): StateFinding {
  return {
    id: 'database.corrupt',
    state: 'failed',
    message: `${path} is damaged: ${reason}`,
    next: 'Restore a backup with `agent restore FILE --replace`; or move the file away: the key is kept, and peers send their records again. Check the disk, too.',
  }
}

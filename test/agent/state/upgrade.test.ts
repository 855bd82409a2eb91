/**
 * Between versions: a database of the first days is brought to today's tables with all that is in it, a copy of it is kept, kill -9 at any moment
 * of that loses nothing, and what a newer agent wrote is not touched.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, globSync, mkdtempSync, readFileSync, statSync, utimesSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { describe, expect, it } from 'vitest'
import { BlobIndex } from '../../../agent/content/blob-index.ts'
import { dropCopies, migrate, openDatabase } from '../../../agent/state/database.ts'
import { SCHEMA_VERSIONS } from '../../../agent/state/schema.ts'
import { COPY_SUFFIX } from '../../../agent/state/upgrade.ts'
import { oldDatabase } from '../../first-days.ts'

/** So many that the step takes a while. */
const MANY = `WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
  INSERT INTO content_blobs SELECT printf('%064x', i), 1, i FROM n`
const MANY_BLOBS = 20_006
/** Of the part that is looked at. */
const NEWEST = SCHEMA_VERSIONS.content

const scratch = () => join(mkdtempSync(join(tmpdir(), 'undernet-upgrade-')), 'state.db')

function look(path: string) {
  const db = new DatabaseSync(path)
  const one = (sql: string) => Number(Object.values(db.prepare(sql).get() ?? {})[0])
  const { quick_check } = db.prepare('PRAGMA quick_check').get() as { quick_check: string }
  const seen = {
    check: quick_check,
    version: one("SELECT version FROM schema_versions WHERE part = 'content'"),
    blobs: one('SELECT count(*) FROM content_blobs'),
    pins: one('SELECT count(*) FROM content_pins'),
    fetched: one("SELECT count(*) FROM sqlite_master WHERE name = 'content_fetched'"),
  }
  db.close()
  return seen
}

describe('an upgrade', () => {
  it('keeps a copy of the database as it was, once, and all that is in it', () => {
    const path = scratch()
    oldDatabase(path)
    const db = openDatabase(path)
    new BlobIndex(db)
    db.close()
    expect(look(path)).toEqual({ check: 'ok', version: NEWEST, blobs: 6, pins: 5, fetched: 1 })
    expect(look(path + COPY_SUFFIX)).toEqual({ check: 'ok', version: 1, blobs: 6, pins: 5, fetched: 0 })
    expect(statSync(path + COPY_SUFFIX).mode & 0o777).toBe(0o600)
    const made = statSync(path + COPY_SUFFIX)
    openDatabase(path).close()
    expect(statSync(path + COPY_SUFFIX).ino).toBe(made.ino)
  })

  it('keeps no copy of a database that needs no change, nor of a new one', () => {
    const path = scratch()
    const db = openDatabase(path)
    new BlobIndex(db)
    db.close()
    openDatabase(path).close()
    expect(existsSync(path + COPY_SUFFIX)).toBe(false)
  })

  it('lets the copy go after a month, and when what is in it is to be forgotten', () => {
    const path = scratch()
    oldDatabase(path)
    const db = openDatabase(path)
    new BlobIndex(db)
    db.close()
    const aMonthAgo = Date.now() / 1_000 - 31 * 24 * 3_600
    utimesSync(path + COPY_SUFFIX, aMonthAgo, aMonthAgo)
    openDatabase(path).close()
    expect(existsSync(path + COPY_SUFFIX)).toBe(false)

    const other = scratch()
    oldDatabase(other)
    const left = openDatabase(other)
    dropCopies(left)
    left.close()
    expect(existsSync(other + COPY_SUFFIX)).toBe(false)
  })

  it('loses nothing when it is killed at any moment', async () => {
    const path = scratch()
    oldDatabase(path, MANY)
    const script = fileURLToPath(new URL('upgrading-process.ts', import.meta.url))
    const said: string[] = []
    // Each later than the one before: while it opens and copies, and while it changes tables.
    for (let tries = 0; said.at(-1) !== 'done'; tries++) {
      const child = spawn(process.execPath, [script, path], { stdio: ['ignore', 'pipe', 'inherit'] })
      const closed = once(child, 'close')
      let last = ''
      const begun = Promise.withResolvers<void>()
      child.stdout.on('data', (bytes: Buffer) => {
        last = bytes.toString().trim().split('\n').at(-1) ?? ''
        begun.resolve()
      })
      await Promise.race([begun.promise, closed])
      await Promise.race([delay(tries * tries * 8), closed])
      child.kill('SIGKILL')
      await closed
      said.push(last)
      const { check, version, blobs, pins, fetched } = look(path)
      expect({ check, blobs, pins }).toEqual({ check: 'ok', blobs: MANY_BLOBS, pins: 5 })
      expect(fetched).toBe(version < 2 ? 0 : 1)
      if (version > 1) expect(look(path + COPY_SUFFIX)).toMatchObject({ check: 'ok', version: 1, blobs: MANY_BLOBS })
    }
    expect(said).toContain('opens')
    expect(look(path)).toEqual({ check: 'ok', version: NEWEST, blobs: MANY_BLOBS, pins: 5, fetched: 1 })
    expect(look(path + COPY_SUFFIX)).toEqual({ check: 'ok', version: 1, blobs: MANY_BLOBS, pins: 5, fetched: 0 })
  })

  it('that was killed between two parts leaves the copy from before the first', () => {
    const path = scratch()
    oldDatabase(
      path,
      "UPDATE schema_versions SET version = 1 WHERE part = 'nix'; ALTER TABLE nix_published DROP COLUMN is_root",
    )
    const first = openDatabase(path)
    new BlobIndex(first)
    first.close()
    // Now `content` is new and `nix` is not: the next start has something to change as well.
    openDatabase(path).close()
    expect(look(path)).toMatchObject({ version: NEWEST })
    expect(look(path + COPY_SUFFIX)).toMatchObject({ version: 1 })
  })
})

describe('a downgrade', () => {
  const newer = (part: string) => {
    const path = scratch()
    oldDatabase(path)
    const db = openDatabase(path)
    new BlobIndex(db)
    db.prepare('INSERT OR REPLACE INTO schema_versions VALUES (?, 7)').run(part)
    db.close()
    return path
  }

  it('is refused before anything is touched, with the reason and the way back', () => {
    const path = newer('catalog')
    const before = readFileSync(path)
    const day = new Date().toISOString().slice(0, 10)
    expect(() => openDatabase(path)).toThrow(
      expect.objectContaining({
        code: 'failed',
        message: `the state in ${path} was written by a newer agent (catalog 7, known here: 1); this one would lose some of it`,
        next: expect.stringContaining(`\`agent restore --before-upgrade\` goes back to the state of ${day}`),
      }),
    )
    expect(readFileSync(path).equals(before)).toBe(true)
  })

  it('is none for tables of a part that this agent does not know', () => {
    expect(() => openDatabase(newer('of-tomorrow')).close()).not.toThrow()
  })
})

describe('the table of versions', () => {
  it('has each part that makes tables, and no others', () => {
    const calls = globSync('agent/**/*.ts').flatMap((file) =>
      [...readFileSync(file, 'utf8').matchAll(/\bmigrate\([\w.]+, '([\w-]+)'/g)].map(([, part]) => part ?? ''),
    )
    expect([...new Set(calls)].sort()).toEqual(Object.keys(SCHEMA_VERSIONS))
  })

  it('is held against what each part brings', () => {
    expect(() => migrate(openDatabase(':memory:'), 'content', ['CREATE TABLE a (n)'])).toThrow(/schema.ts/)
  })
})

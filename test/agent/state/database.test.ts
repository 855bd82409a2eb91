/** The state database: migrations, refusal of newer and of corrupt files, and what survives. */
import { mkdtempSync, readFileSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { migrate, openDatabase, transaction } from '../../../agent/state/database.ts'

const scratch = () => join(mkdtempSync(join(tmpdir(), 'undernet-db-')), 'state.db')
const steps = ['CREATE TABLE a (n INTEGER) STRICT', 'ALTER TABLE a ADD COLUMN m INTEGER']

describe('state database', () => {
  it('applies each step once, whatever version it starts from', () => {
    const path = scratch()
    const first = openDatabase(path)
    migrate(first, 'part', steps.slice(0, 1))
    first.exec('INSERT INTO a VALUES (1)')
    first.close()
    const second = openDatabase(path)
    migrate(second, 'part', steps)
    migrate(second, 'part', steps)
    expect(second.prepare('SELECT n, m FROM a').all()).toEqual([{ n: 1, m: null }])
    second.close()
  })

  it('refuses a file that a newer agent wrote, and says what to do', () => {
    const db = openDatabase(':memory:')
    migrate(db, 'part', steps)
    expect(() => migrate(db, 'part', steps.slice(0, 1))).toThrow(/newer agent/)
  })

  it('leaves the version alone when a step fails', () => {
    const db = openDatabase(':memory:')
    expect(() => migrate(db, 'part', [steps[0] ?? '', 'NOT SQL'])).toThrow(/syntax/)
    migrate(db, 'part', steps)
    expect(db.prepare('SELECT version FROM schema_versions').get()).toEqual({ version: 2 })
  })

  it('refuses a corrupt file and leaves its bytes as they are', () => {
    const path = scratch()
    const rubbish = Buffer.alloc(8192, 'not a database ')
    writeFileSync(path, rubbish)
    expect(() => openDatabase(path)).toThrow(/cannot be used: file is not a database/)
    expect(readFileSync(path)).toEqual(rubbish)
  })

  it('undoes a transaction that throws', () => {
    const db = openDatabase(':memory:')
    migrate(db, 'part', steps)
    expect(() =>
      transaction(db, () => {
        db.exec('INSERT INTO a VALUES (1, 2)')
        throw new Error('half-way')
      }),
    ).toThrow('half-way')
    expect(db.prepare('SELECT count(*) AS n FROM a').get()).toEqual({ n: 0 })
  })
})

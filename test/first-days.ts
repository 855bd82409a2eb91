/**
 * The state that an agent of the first days left, made anew from what was written out of it (first-days.sql): what upgrades are tested with. Its
 * file `letter` is there, the other blobs are not.
 */
import { createHash } from 'node:crypto'
import { mkdirSync, mkdtempSync, readFileSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'

export const ELDER = {
  peerId: '12D3KooWB2Nd1V7nGqPcgqaPCiNF49PJpLwFkkDde3yzEXxbJRGZ',
  letter: 'kept since the first days\n',
  /** The highest that its records have. */
  seq: 1_795_395_138_724,
  trusts: 'friend-1',
}

/** Ed25519 in PKCS #8, before the 32 bytes of the key (RFC 8410). */
const KEY_HEAD = Buffer.from('302e020100300506032b657004220420', 'hex')

/** A database of the first days, with more rows of `table` as the caller likes. */
export function oldDatabase(path: string, sql = ''): void {
  const db = new DatabaseSync(path)
  db.exec('PRAGMA journal_mode = WAL; PRAGMA synchronous = OFF')
  db.exec(readFileSync(new URL('first-days.sql', import.meta.url), 'utf8'))
  db.exec(sql)
  db.close()
}

/** Its directory, for an agent to start with. */
export function oldState(): string {
  const state = mkdtempSync(join(tmpdir(), 'undernet-first-days-'))
  oldDatabase(join(state, 'state.db'))
  const key = Buffer.concat([KEY_HEAD, createHash('sha256').update('a node of the first days').digest()])
  const pem = `-----BEGIN PRIVATE KEY-----\n${key.toString('base64')}\n-----END PRIVATE KEY-----\n`
  writeFileSync(join(state, 'node.key'), pem, { mode: 0o600 })
  const digest = createHash('sha256').update(ELDER.letter).digest('hex')
  mkdirSync(join(state, 'blobs', digest.slice(0, 2)), { recursive: true })
  writeFileSync(join(state, 'blobs', digest.slice(0, 2), digest), ELDER.letter)
  return state
}

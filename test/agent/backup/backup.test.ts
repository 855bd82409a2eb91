/** Backups: what goes in comes out; who has no passphrase, or half a file, is told so and changes nothing; nothing that was there is lost. */
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { gzipSync } from 'node:zlib'
import { afterAll, describe, expect, it } from 'vitest'
import { clearBackup, makeBackup } from '../../../agent/backup/make.ts'
import { readBackup } from '../../../agent/backup/read.ts'
import { restoreBackup, undoUpgrade } from '../../../agent/backup/restore.ts'
import { BlobIndex } from '../../../agent/content/blob-index.ts'
import { encrypterFor } from '../../../agent/identity/passphrase.ts'
import { openDatabase } from '../../../agent/state/database.ts'
import { StateDirectory } from '../../../agent/state/directory.ts'
import { SCHEMA_VERSIONS } from '../../../agent/state/schema.ts'
import { writeTar } from '../../../agent/tar.ts'
import { ELDER, oldState } from '../../first-days.ts'

const PASSPHRASE = 'correct horse battery'
/** As quick as age lets it be. */
const WORK_FACTOR = 1
const made: string[] = []
afterAll(() => {
  for (const directory of made) rmSync(directory, { recursive: true, force: true })
})

function scratch(): string {
  const directory = mkdtempSync(join(tmpdir(), 'undernet-backup-'))
  made.push(directory)
  return directory
}

/** A state as an agent has it: keys, a root key, databases in use, blobs, and what is nobody's. */
function node() {
  const directory = oldState()
  made.push(directory)
  writeFileSync(join(directory, 'cache.key'), 'cache-1:secret', { mode: 0o600 })
  mkdirSync(join(directory, 'networks'), { mode: 0o700 })
  writeFileSync(join(directory, 'networks', `${'ab'.repeat(32)}.root`), 'root key', { mode: 0o600 })
  openDatabase(join(directory, 'networks', `${'ab'.repeat(32)}.db`)).close()
  writeFileSync(join(directory, 'holder.json'), '{}')
  const db = openDatabase(join(directory, 'state.db'))
  new BlobIndex(db)
  const configFile = join(scratch(), 'agent.toml')
  writeFileSync(configFile, 'name = "elder"\n')
  return { directory, configFile, db }
}

const source = (directory: string, configFile?: string) => ({
  directory,
  configFile,
  node: { version: '0.1.0', peerId: ELDER.peerId, name: 'elder' },
  workFactor: WORK_FACTOR,
})

/** A backup file of a node. */
async function backedUp(): Promise<{ file: string; configFile: string; directory: string }> {
  const { directory, configFile, db } = node()
  const file = join(scratch(), 'node.age')
  copyFileSync(await makeBackup(source(directory, configFile), PASSPHRASE), file)
  clearBackup(directory)
  db.close()
  return { file, configFile, directory }
}

const into = (directory: string, file: string, more = {}) =>
  restoreBackup({
    file,
    directory,
    passphrase: PASSPHRASE,
    configFile: join(directory, 'x', 'agent.toml'),
    replace: false,
    ...more,
  })

describe('a backup', () => {
  it('has keys, root keys, databases and configuration, each as it is at that moment, and no content', async () => {
    const { directory, configFile, db } = node()
    db.exec('BEGIN IMMEDIATE; DELETE FROM trusted_keys')
    const out = await makeBackup(source(directory, configFile), PASSPHRASE)
    expect(statSync(out).mode & 0o777).toBe(0o600)
    const files: Record<string, Buffer> = {}
    const manifest = await readBackup(out, PASSPHRASE, async (name, bytes) => {
      files[name] = Buffer.concat(await Array.fromAsync(bytes))
    })
    expect(Object.keys(files).sort()).toEqual(
      [
        'cache.key',
        'config/agent.toml',
        `networks/${'ab'.repeat(32)}.db`,
        `networks/${'ab'.repeat(32)}.root`,
        'node.key',
        'state.db',
      ].sort(),
    )
    expect(manifest).toMatchObject({
      v: 1,
      peerId: ELDER.peerId,
      name: 'elder',
      schema: { content: SCHEMA_VERSIONS.content, catalog: 1 },
    })
    const copy = join(scratch(), 'copy.db')
    writeFileSync(copy, files['state.db'] ?? '')
    // What was not committed is not in it.
    expect(new DatabaseSync(copy).prepare('SELECT count(*) AS n FROM trusted_keys').get()).toEqual({ n: 1 })
    clearBackup(directory)
    expect(existsSync(join(directory, 'backup.new'))).toBe(false)
    db.close()
  })

  it('is one at a time, and wants a passphrase that is not a slip', async () => {
    const { directory, db } = node()
    await makeBackup(source(directory), PASSPHRASE)
    await expect(makeBackup(source(directory), PASSPHRASE)).rejects.toMatchObject({ code: 'taken' })
    clearBackup(directory)
    await expect(makeBackup(source(directory), 'short')).rejects.toMatchObject({ code: 'usage' })
    expect(existsSync(join(directory, 'backup.new'))).toBe(false)
    db.close()
  })

  it('has nothing in the clear', async () => {
    const { file } = await backedUp()
    const bytes = readFileSync(file).toString('latin1')
    expect(bytes.startsWith('age-encryption.org/v1\n-> scrypt ')).toBe(true)
    expect(bytes).not.toMatch(/elder|SQLite|PRIVATE KEY|node\.key/)
  })
})

describe('restoring', () => {
  it('makes the same files of it, for their owner only', async () => {
    const { file, directory: old } = await backedUp()
    const directory = join(scratch(), 'new')
    const { manifest, replaced, config } = await into(directory, file)
    expect(manifest.peerId).toBe(ELDER.peerId)
    expect(replaced).toBeUndefined()
    expect(readFileSync(config ?? '', 'utf8')).toBe('name = "elder"\n')
    for (const name of ['node.key', 'cache.key', `networks/${'ab'.repeat(32)}.root`]) {
      expect(readFileSync(join(directory, name)).equals(readFileSync(join(old, name)))).toBe(true)
      expect(statSync(join(directory, name)).mode & 0o777).toBe(0o600)
    }
    expect(readdirSync(directory).filter((name) => /restor|backup|blobs/.test(name))).toEqual([])
    const db = openDatabase(join(directory, 'state.db'))
    expect(db.prepare('SELECT seq FROM record_counters').get()).toEqual({ seq: ELDER.seq })
    db.close()
  })

  it('refuses where there is a node, and with replace puts that aside', async () => {
    const { file, configFile } = await backedUp()
    const { directory, db } = node()
    db.close()
    await expect(into(directory, file)).rejects.toMatchObject({
      code: 'taken',
      next: expect.stringContaining('--replace'),
    })
    const key = readFileSync(join(directory, 'cache.key'))
    const { replaced = '', config } = await into(directory, file, { replace: true, configFile })
    expect(readFileSync(join(replaced, 'cache.key')).equals(key)).toBe(true)
    expect(readdirSync(replaced)).toEqual(expect.arrayContaining(['node.key', 'state.db', 'networks']))
    // The same is there already.
    expect(config).toBeUndefined()
    expect(existsSync(join(directory, 'blobs'))).toBe(true)
    writeFileSync(configFile, 'name = "younger"\n')
    const again = await into(directory, file, { replace: true, configFile })
    expect(again.config).toBe(join(directory, 'agent.toml.restored'))
    expect(readFileSync(configFile, 'utf8')).toBe('name = "younger"\n')
  })

  it('refuses while an agent runs on the state', async () => {
    const { file } = await backedUp()
    const directory = scratch()
    using _state = StateDirectory.open(directory)
    await expect(into(directory, file)).rejects.toMatchObject({
      code: 'taken',
      message: expect.stringContaining(`process ${process.pid}`),
    })
  })

  it('tells a wrong passphrase from a damaged file, and changes nothing for either', async () => {
    const { file } = await backedUp()
    const directory = scratch()
    const there = () => readdirSync(directory).filter((name) => !/^(lock|holder)/.test(name))
    await expect(into(directory, file, { passphrase: 'another one' })).rejects.toMatchObject({
      code: 'not-allowed',
      message: expect.stringContaining('passphrase'),
    })
    const bytes = readFileSync(file)
    const other = join(scratch(), 'other.age')
    for (const length of [0, 10, 100, 250, 1_000, Math.floor(bytes.byteLength / 2), bytes.byteLength - 1]) {
      writeFileSync(other, bytes.subarray(0, length))
      await expect(into(directory, other)).rejects.toMatchObject({
        code: 'corrupt',
        next: expect.stringContaining('whole'),
      })
    }
    for (const at of [1, 60, 300, Math.floor(bytes.byteLength / 2), bytes.byteLength - 1]) {
      const changed = Buffer.from(bytes)
      changed[at] = (changed[at] ?? 0) ^ 1
      writeFileSync(other, changed)
      await expect(into(directory, other)).rejects.toMatchObject({ code: expect.stringMatching(/corrupt|not-allowed/) })
    }
    expect(there()).toEqual([])
    await expect(into(directory, join(directory, 'none.age'))).rejects.toMatchObject({ code: 'ENOENT' })
  })

  it('refuses what is encrypted and no backup: other names, other hashes, files that are not said', async () => {
    const text = Buffer.from('x')
    const sha256 = createHash('sha256').update(text).digest('hex')
    const manifest = (over: object) =>
      Buffer.from(
        JSON.stringify({
          v: 1,
          version: '0.1.0',
          peerId: ELDER.peerId,
          name: 'x',
          made: '2026-01-01T00:00:00.000Z',
          schema: {},
          files: [{ name: 'node.key', sizeBytes: 1, sha256 }],
          ...over,
        }),
      )
    const entry = (name: string, bytes: Buffer) => ({ name, sizeBytes: bytes.byteLength, bytes: [bytes] })
    const key = entry('node.key', text)
    const cases: Record<string, { entries: ReturnType<typeof entry>[]; says: RegExp }> = {
      'no manifest': { entries: [key], says: /does not begin/ },
      'a way out': {
        entries: [entry('backup.json', manifest({ files: [{ name: '../node.key', sizeBytes: 1, sha256 }] }))],
        says: /not in order/,
      },
      'a later format': { entries: [entry('backup.json', manifest({ v: 2 })), key], says: /not in order/ },
      'another file': { entries: [entry('backup.json', manifest({})), entry('other.key', text)], says: /other files/ },
      'one too few': { entries: [entry('backup.json', manifest({}))], says: /too early/ },
      'another content': {
        entries: [entry('backup.json', manifest({})), entry('node.key', Buffer.from('y'))],
        says: /not what it was/,
      },
      'no key': { entries: [entry('backup.json', manifest({ files: [] }))], says: /no node key/ },
    }
    const directory = scratch()
    for (const { entries, says } of Object.values(cases)) {
      const file = join(scratch(), 'made-up.age')
      const plain = gzipSync(Buffer.concat(await Array.fromAsync(writeTar(entries, 0))))
      writeFileSync(file, await (await encrypterFor(PASSPHRASE, WORK_FACTOR)).encrypt(plain))
      await expect(into(directory, file)).rejects.toMatchObject({
        code: 'corrupt',
        message: expect.stringMatching(says),
      })
    }
    expect(readdirSync(directory).filter((name) => !/^(lock|holder)/.test(name))).toEqual([])
  })

  it('refuses a backup of a newer agent', async () => {
    const { directory, db } = node()
    db.prepare("UPDATE schema_versions SET version = 9 WHERE part = 'catalog'").run()
    const file = await makeBackup(source(directory), PASSPHRASE)
    await expect(into(scratch(), file)).rejects.toMatchObject({
      code: 'failed',
      message: expect.stringContaining('newer agent'),
    })
    db.close()
  })

  it('that was killed half-way keeps an agent from starting as somebody else, and is ended by doing it again', async () => {
    const { file } = await backedUp()
    const directory = scratch()
    // As a kill leaves it: nothing in its place yet.
    mkdirSync(join(directory, 'restoring'))
    writeFileSync(join(directory, 'restoring', 'node.key'), 'half')
    expect(() => StateDirectory.open(directory)).toThrow(/restored into .* not ended/)
    const { manifest } = await into(directory, file)
    expect(manifest.peerId).toBe(ELDER.peerId)
    using state = StateDirectory.open(directory)
    expect(existsSync(state.file('node.key'))).toBe(true)
  })

  it.runIf(process.getuid?.() === 0)('gives all to the owner of the directory when root does it', async () => {
    const { file } = await backedUp()
    const directory = scratch()
    execFileSync('chown', ['12345:12345', directory])
    chmodSync(directory, 0o700)
    await into(directory, file)
    for (const name of ['node.key', 'state.db', 'networks', `networks/${'ab'.repeat(32)}.root`])
      expect(statSync(join(directory, name)).uid).toBe(12_345)
  })
})

describe('going back to before an upgrade', () => {
  it('puts the databases back that were kept, and keeps those of now', () => {
    const { directory, db } = node()
    db.close()
    const { databases, replaced } = undoUpgrade(directory)
    expect(databases).toEqual(['state.db'])
    const version = (path: string) =>
      new DatabaseSync(path).prepare("SELECT version FROM schema_versions WHERE part = 'content'").get()
    expect(version(join(directory, 'state.db'))).toEqual({ version: 1 })
    expect(version(join(replaced, 'state.db'))).toEqual({ version: SCHEMA_VERSIONS.content })
    expect(() => undoUpgrade(directory)).toThrow(/no copy/)
  })
})

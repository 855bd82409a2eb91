/** A store with a database as Nix makes it, for tests that need no Nix: the schema is Nix's own, version 10. */
import { createHash } from 'node:crypto'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { DatabaseSync } from 'node:sqlite'
import { NixStore } from '../../../agent/nix/nix-store.ts'
import { encodeNix32 } from '../../../agent/nix/nix32.ts'
import { layoutNar } from '../../../protocols/nar/write.ts'

const SCHEMA = `
  CREATE TABLE ValidPaths (
    id integer primary key autoincrement not null, path text unique not null, hash text not null,
    registrationTime integer not null, deriver text, narSize integer, ultimate integer, sigs text, ca text);
  CREATE TABLE Refs (
    referrer integer not null, reference integer not null, primary key (referrer, reference),
    foreign key (referrer) references ValidPaths(id) on delete cascade,
    foreign key (reference) references ValidPaths(id) on delete restrict);
  CREATE INDEX IndexReferrer ON Refs(referrer);
  CREATE INDEX IndexReference ON Refs(reference);`

type Given = { references?: string[]; sigs?: string; ca?: string; ultimate?: boolean; deriver?: string }

export class FakeNix implements Disposable {
  readonly root = mkdtempSync(join(tmpdir(), 'fake-nix-'))
  readonly directory = join(this.root, 'store')
  readonly databasePath = join(this.root, 'db.sqlite')
  readonly store = new NixStore(this.directory, this.databasePath)
  readonly #db: DatabaseSync
  #count = 0

  constructor() {
    mkdirSync(this.directory)
    this.#db = new DatabaseSync(this.databasePath)
    this.#db.exec(`PRAGMA journal_mode = WAL; ${SCHEMA}`)
  }

  /** Makes a path with one file in it, and registers it. */
  async add(name: string, contents: string, given: Given = {}): Promise<string> {
    const hash = createHash('sha256')
      .update(`${name} ${contents} ${this.#count++}`)
      .digest()
      .subarray(0, 20)
    const path = join(this.directory, `${encodeNix32(hash)}-${name}`)
    mkdirSync(path)
    writeFileSync(join(path, 'file'), contents)
    await this.register(path, given)
    return path
  }

  /** Registers what is there, again if it was. */
  async register(path: string, { references = [], sigs, ca, ultimate = true, deriver }: Given = {}): Promise<void> {
    const layout = await layoutNar(path)
    const hash = createHash('sha256')
    for await (const chunk of layout.read(0, layout.sizeBytes, new AbortController().signal)) hash.update(chunk)
    this.#db
      .prepare(
        `INSERT INTO ValidPaths (path, hash, registrationTime, narSize, ultimate, sigs, ca, deriver) VALUES (?, ?, 0, ?, ?, ?, ?, ?)
         ON CONFLICT (path) DO UPDATE SET hash = excluded.hash, narSize = excluded.narSize`,
      )
      .run(
        path,
        `sha256:${hash.digest('hex')}`,
        layout.sizeBytes,
        ultimate ? 1 : null,
        sigs ?? null,
        ca ?? null,
        deriver ?? null,
      )
    const refer = this.#db.prepare(
      'INSERT OR IGNORE INTO Refs SELECT a.id, b.id FROM ValidPaths a, ValidPaths b WHERE a.path = ? AND b.path = ?',
    )
    for (const reference of references) refer.run(path, reference === 'self' ? path : reference)
  }

  /** As a garbage collection. */
  delete(path: string): void {
    rmSync(path, { recursive: true })
    this.#db.prepare('DELETE FROM Refs WHERE referrer = (SELECT id FROM ValidPaths WHERE path = ?)').run(path)
    this.#db.prepare('DELETE FROM ValidPaths WHERE path = ?').run(path)
  }

  exec(sql: string): void {
    this.#db.exec(sql)
  }

  /** Closes Nix's side, which removes the WAL files. */
  closeDatabase(): void {
    this.store[Symbol.dispose]()
    this.#db.close()
  }

  [Symbol.dispose](): void {
    this.store[Symbol.dispose]()
    if (this.#db.isOpen) this.#db.close()
    rmSync(this.root, { recursive: true, force: true })
  }
}

export const hashPartOf = (path: string) => path.slice(path.lastIndexOf('/') + 1).slice(0, 32)

/** A directory that stands for a machine, and what is in it: for tests that it is as it was. */
import { createHash } from 'node:crypto'
import {
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'

/** In memory, where there is such a place: what is installed is synced to the disk file by file. */
const PLACE = existsSync('/dev/shm') ? '/dev/shm' : tmpdir()

export class Tree implements Disposable {
  readonly directory = mkdtempSync(join(PLACE, 'undernet-install-'))

  put(path: string, content: string | Uint8Array): void {
    mkdirSync(dirname(join(this.directory, path)), { recursive: true })
    writeFileSync(join(this.directory, path), content)
  }

  read(path: string): string {
    return readFileSync(join(this.directory, path), 'utf8')
  }

  /** Each path with its mode and what it is; `but` leaves some out. */
  snapshot(but: RegExp = /^$/): Record<string, string> {
    const paths = readdirSync(this.directory, { recursive: true, encoding: 'utf8' }).sort()
    return Object.fromEntries(paths.filter((path) => !but.test(`/${path}`)).map((path) => [path, this.#what(path)]))
  }

  #what(path: string): string {
    const file = join(this.directory, path)
    const stats = lstatSync(file)
    const mode = (stats.mode & 0o7777).toString(8)
    if (stats.isSymbolicLink()) return `-> ${readlinkSync(file)}`
    if (stats.isDirectory()) return `directory ${mode}`
    return `file ${mode} ${createHash('sha256').update(readFileSync(file)).digest('hex')}`
  }

  [Symbol.dispose](): void {
    rmSync(this.directory, { recursive: true, force: true })
  }
}

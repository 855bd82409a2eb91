/**
 * A flat, uncompressed binary cache of a closure, as anybody would make one: `nix copy` to a directory that nginx serves.
 */
import { execFile } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import type { LanHost } from './lan.ts'
import { Nginx } from './nginx.ts'

export class StaticCache implements AsyncDisposable {
  readonly url: string
  readonly publicKey: string
  /** Where its NARs are. */
  readonly nars: string
  readonly #nginx: Nginx
  readonly #directory: string

  private constructor(nginx: Nginx, directory: string, publicKey: string) {
    this.url = nginx.url
    this.publicKey = publicKey
    this.nars = join(directory, 'cache', 'nar')
    this.#nginx = nginx
    this.#directory = directory
  }

  /** On loopback if it is not said where; undefined where nginx is not installed. */
  static async make(root: string, at?: LanHost): Promise<StaticCache | undefined> {
    const directory = mkdtempSync(join(tmpdir(), 'undernet-cache-'))
    const run = promisify(execFile)
    const [secret, open] = [join(directory, 'secret'), join(directory, 'public')]
    await run('nix-store', ['--generate-binary-cache-key', 'bench-1', secret, open])
    const to = `file://${join(directory, 'cache')}?compression=none&secret-key=${secret}`
    await run('nix', ['--extra-experimental-features', 'nix-command', 'copy', '--to', to, root])
    const nginx = await Nginx.serve(join(directory, 'cache'), { ...(at && { at }) })
    if (nginx !== undefined) return new StaticCache(nginx, directory, readFileSync(open, 'utf8').trim())
    rmSync(directory, { recursive: true, force: true })
    return undefined
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#nginx[Symbol.asyncDispose]()
    rmSync(this.#directory, { recursive: true, force: true })
  }
}

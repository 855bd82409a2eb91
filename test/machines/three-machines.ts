/**
 * Three machines on one switch, with nothing but Debian, and what they get: the package as it is and a newer one, and a directory that all see as
 * /mnt. All goes when it is disposed.
 */
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { basename, join } from 'node:path'
import type { Architecture } from '../../nix/deb/runtime.ts'
import { buildDeb } from '../../nix/deb.ts'
import manifest from '../../package.json' with { type: 'json' }
import { makeHosts } from '../lab/three-hosts.ts'
import { DISKS, Machine } from './machine.ts'
import { machineRoot } from './root.ts'

const NAMES = ['first', 'second', 'third'] as const
const ARCHITECTURE: Architecture = process.arch === 'arm64' ? 'arm64' : 'amd64'
/** Sorts after every version that the sources may have. */
const NEWER = `${manifest.version}+next`

export type Packages = { file: string; version: string; newerFile: string; newer: string }

export class ThreeMachines implements AsyncDisposable {
  readonly shared: string
  /** As the machines see them. */
  readonly packages: Packages
  readonly all: readonly [first: Machine, second: Machine, third: Machine]
  readonly #stack: AsyncDisposableStack

  private constructor(stack: AsyncDisposableStack, shared: string, packages: Packages, all: Machine[]) {
    this.#stack = stack
    this.shared = shared
    this.packages = packages
    this.all = all as [Machine, Machine, Machine]
  }

  static async open(say: (line: string) => void = () => undefined): Promise<ThreeMachines> {
    await using stack = new AsyncDisposableStack()
    // Among the disks: what a killed process leaves behind goes with them.
    mkdirSync(DISKS, { recursive: true })
    const shared = mkdtempSync(join(DISKS, `${process.pid}-shared-`))
    stack.defer(() => rmSync(shared, { recursive: true, force: true }))
    const [root, packages] = await Promise.all([machineRoot(say), buildPackages(shared)])
    const hosts = stack.use(makeHosts(NAMES.length))
    const boot = async (name: string, nth: number) =>
      stack.use(await Machine.start({ name, root, namespace: hosts.namespace(nth), shared }))
    const started = await Promise.allSettled(NAMES.map(boot))
    const failed = started.find((one) => one.status === 'rejected')
    if (failed !== undefined) throw failed.reason
    const machines = started.flatMap((one) => (one.status === 'fulfilled' ? [one.value] : []))
    return new ThreeMachines(stack.move(), shared, packages, machines)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#stack.disposeAsync()
  }
}

async function buildPackages(shared: string): Promise<Packages> {
  const outdir = join(shared, 'packages')
  mkdirSync(outdir)
  const build = (version: string) => buildDeb({ architecture: ARCHITECTURE, outdir, version, packed: 'zstd' })
  const files = await Promise.all([build(manifest.version), build(NEWER)])
  const [file = '', newerFile = ''] = files.map((one) => `/mnt/packages/${basename(one)}`)
  return { file, version: manifest.version, newerFile, newer: NEWER }
}

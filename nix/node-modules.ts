/**
 * The npm packages that the agent is built from and runs with, for the package of Nix, which wants to know a hash of what comes from
 * the network before it comes.
 *
 *   node nix/node-modules.ts OUT SYSTEM     puts them into OUT, for x86_64-linux or aarch64-linux: what package.nix runs
 *   npm run node-modules                    writes the hashes of both into node-modules.json: after each change of dependencies
 *
 * nixpkgs' own ways (importNpmLock, fetchNpmDeps) need the URL of each package in the lock file. Ours has none, so that any registry will
 * do; npm knows its own. What it fetches is held against the lock file's hashes, no script of a package runs, and what is put down is the
 * same for all versions of npm: the packages' own files.
 *
 * Left out are `node`, since Nix has one, and what only tests and checks need: a third of the packages, in a twentieth of the bytes.
 */
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import { fileURLToPath } from 'node:url'
import { layoutNar } from '../protocols/nar/write.ts'

/** What each of Nix's systems is for npm. */
const SYSTEMS: Readonly<Record<string, string>> = { 'x86_64-linux': 'x64', 'aarch64-linux': 'arm64' }
/** Comes from nixpkgs. */
const OF_NIX = 'node'
/** Of the packages for development, what builds. */
const BUILDS = 'esbuild'

const root = fileURLToPath(new URL('..', import.meta.url))
const HASHES_FILE = join(root, 'nix', 'node-modules.json')

type Dependencies = Readonly<Record<string, string>>
type Manifest = { name: string; version: string; dependencies: Dependencies; devDependencies: Dependencies }
type LockEntry = {
  integrity?: string
  dependencies?: Dependencies
  optionalDependencies?: Dependencies
  peerDependencies?: Dependencies
}
type Lock = { packages: Record<string, LockEntry>; lockfileVersion: number }
type Hashes = { lock: string } & Record<string, string>

/** package.json and package-lock.json, without what is not needed. */
export function neededPackages(): { manifest: string; lock: string } {
  const { name, version, dependencies, devDependencies } = readJson<Manifest>('package.json')
  const { packages, lockfileVersion } = readJson<Lock>('package-lock.json')
  const { [OF_NIX]: _, ...rest } = dependencies
  const manifest = { name, version, dependencies: { ...rest, [BUILDS]: devDependencies[BUILDS] as string } }
  const needed = new Map<string, LockEntry>()
  const visit = (at: string, locked: LockEntry) => {
    const entry = promised(packages, at, locked)
    needed.set(at, entry)
    for (const dependency of namesIn(entry)) {
      const found = placeOf(packages, at, dependency)
      if (found !== undefined && !needed.has(found)) visit(found, packages[found] as LockEntry)
    }
  }
  visit('', manifest)
  const sorted = Object.fromEntries([...needed].sort(([a], [b]) => (a < b ? -1 : 1)))
  return { manifest: json(manifest), lock: json({ name, version, lockfileVersion, requires: true, packages: sorted }) }
}

/** Of what is needed, without the version of the agent: what node-modules.json was made for. */
export function lockDigest(): string {
  const { packages } = JSON.parse(neededPackages().lock) as Lock
  const { '': own, ...others } = packages
  return sha256(JSON.stringify([own?.dependencies, others]))
}

/** What Nix is told. */
export function recordedHashes(): Hashes {
  return JSON.parse(readFileSync(HASHES_FILE, 'utf8')) as Hashes
}

/** Puts the packages for `system` into a new directory, in its folder node_modules. */
function install(out: string, system: string): void {
  const cpu = SYSTEMS[system]
  if (cpu === undefined) throw new Error(`${system} is none of ${Object.keys(SYSTEMS).join(', ')}`)
  const { manifest, lock } = neededPackages()
  mkdirSync(out, { recursive: true })
  const directory = mkdtempSync(join(dirname(out), '.npm-'))
  try {
    writeFileSync(join(directory, 'package.json'), manifest)
    writeFileSync(join(directory, 'package-lock.json'), lock)
    const target = [`--cpu=${cpu}`, '--os=linux', '--libc=glibc']
    const quiet = ['--no-audit', '--no-fund', '--no-update-notifier', '--no-progress', '--loglevel=error']
    const words = ['ci', '--ignore-scripts', '--no-bin-links', '--prefer-offline', ...target, ...quiet]
    execFileSync('npm', words, { cwd: directory, stdio: ['ignore', 'inherit', 'inherit'] })
    // npm's own note of what it did.
    rmSync(join(directory, 'node_modules', '.package-lock.json'), { force: true })
    renameSync(join(directory, 'node_modules'), join(out, 'node_modules'))
  } finally {
    rmSync(directory, { recursive: true, force: true })
  }
}

/** As Nix writes the hash of a directory: of its NAR. */
async function narHash(path: string): Promise<string> {
  const layout = await layoutNar(path)
  const hash = createHash('sha256')
  for await (const chunk of layout.read(0, layout.sizeBytes, new AbortController().signal)) hash.update(chunk)
  return `sha256-${hash.digest('base64')}`
}

async function writeHashes(): Promise<void> {
  const hashes: Hashes = { lock: lockDigest() }
  for (const system of Object.keys(SYSTEMS)) {
    const directory = mkdtempSync(join(tmpdir(), 'undernet-modules-'))
    try {
      install(join(directory, 'out'), system)
      hashes[system] = await narHash(join(directory, 'out'))
      process.stdout.write(`${system} ${hashes[system]}\n`)
    } finally {
      rmSync(directory, { recursive: true, force: true })
    }
  }
  writeFileSync(HASHES_FILE, json(hashes))
}

/**
 * Without the optional packages that the lock file has no hash of: those of platforms that nobody has fetched yet. What they would bring
 * nobody could promise Nix, and what asks for them does without.
 */
function promised(packages: Lock['packages'], at: string, entry: LockEntry): LockEntry {
  const { optionalDependencies = {} } = entry
  const known = Object.entries(optionalDependencies).filter(([name]) => {
    const place = placeOf(packages, at, name)
    return place !== undefined && packages[place]?.integrity !== undefined
  })
  return entry.optionalDependencies ? { ...entry, optionalDependencies: Object.fromEntries(known) } : entry
}

function namesIn({ dependencies, optionalDependencies, peerDependencies }: LockEntry): string[] {
  return Object.keys({ ...dependencies, ...optionalDependencies, ...peerDependencies })
}

/** Where Node finds a package from another one: the nearest node_modules upwards. */
function placeOf(packages: Lock['packages'], from: string, name: string): string | undefined {
  for (let at = from; ; at = at.slice(0, Math.max(0, at.lastIndexOf('/node_modules/')))) {
    const place = `${at === '' ? '' : `${at}/`}node_modules/${name}`
    if (packages[place] !== undefined) return place
    if (at === '') return undefined
  }
}

function readJson<T>(file: string): T {
  return JSON.parse(readFileSync(join(root, file), 'utf8')) as T
}

function json(value: object): string {
  return `${JSON.stringify(value, undefined, 2)}\n`
}

function sha256(text: string): string {
  return createHash('sha256').update(text).digest('hex')
}

if (import.meta.main) {
  const [out, system] = process.argv.slice(2)
  if (out === undefined || system === undefined) await writeHashes()
  else install(resolve(out), system)
}

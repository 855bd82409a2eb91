/**
 * What makes up the program on a machine: the Node that runs this, the bundle, and koffi with its native code. Copied as one directory that
 * is named by its content, so that a newer one comes to stand beside it, and the one that runs stays whole until it has ended.
 */
import { createHash } from 'node:crypto'
import {
  chmodSync,
  closeSync,
  constants,
  copyFileSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readSync,
  realpathSync,
  renameSync,
  rmSync,
  statSync,
} from 'node:fs'
import { createRequire } from 'node:module'
import { basename, dirname, join } from 'node:path'
import { AgentError } from '../error.ts'
import type { Root } from './root.ts'

/** Where it is in a program. In a `bin`, since SELinux lets services run what is there. */
export const NODE = 'bin/node'
export const MAIN = 'dist/main.js'
/** Of the hash of the content. */
const ID_LENGTH = 16
const READ_BYTES = 1024 * 1024
/** What Node loads; not documentation and sources. */
const LOADED = /\.(js|cjs|mjs|json|node)$/
const NOT_LOADED = new Set(['doc', 'vendor', 'lib', 'cnoke.cjs'])

export type ProgramFile = { /** In the program's directory. */ path: string; source: string; isExecutable: boolean }
export type Program = { id: string; files: readonly ProgramFile[]; sizeBytes: number }

/**
 * The program that runs now. `entry` is what Node was started with.
 *
 * @throws {AgentError} `usage` when there is no bundle, or no Node that can be copied
 */
export function runningProgram(entry = process.argv[1] ?? ''): Program {
  const bundle = bundleOf(realpathSync(entry))
  const node = nodeFor(join(bundle, 'main.js'))
  const bundled = readdirSync(bundle, { withFileTypes: true })
    .filter((one) => one.isFile() && LOADED.test(one.name))
    .map(({ name }) => ({ path: join('dist', name), source: join(bundle, name), isExecutable: false }))
  const files = [
    { path: NODE, source: node, isExecutable: true },
    ...bundled,
    ...packageFiles('koffi', join(bundle, 'main.js')),
  ]
  return programOf(files)
}

/** A program of these files. */
export function programOf(files: readonly ProgramFile[]): Program {
  const sorted = files.toSorted((a, b) => (a.path < b.path ? -1 : 1))
  return {
    id: idOf(sorted),
    files: sorted,
    sizeBytes: sorted.reduce((sum, { source }) => sum + statSync(source).size, 0),
  }
}

/** The one that came with the agent: it needs nothing of the machine. Without it the one that runs, unless it would not outlive its surroundings. */
function nodeFor(bundle: string): string {
  try {
    const own = join(dirname(createRequire(bundle).resolve('node/package.json')), 'bin', 'node')
    if (existsSync(own)) return realpathSync(own)
  } catch {
    // Not from a clone.
  }
  const node = realpathSync(process.execPath)
  if (!node.startsWith('/nix/store/')) return node
  throw new AgentError('usage', `${node} needs libraries of the Nix store, which may be collected there`, {
    next: 'Run this with another Node, such as that of npm ci: node_modules/.bin/node dist/main.js install',
  })
}

/** Beside the sources when it is they that run. */
function bundleOf(entry: string): string {
  const directory = basename(entry) === 'main.js' ? dirname(entry) : join(dirname(dirname(entry)), 'dist')
  if (existsSync(join(directory, 'main.js'))) return directory
  throw new AgentError('usage', `there is no bundle at ${directory}: from sources nothing can be installed`, {
    next: 'Make it first, in the directory of the sources: npm ci && npm run build',
  })
}

/** A package that the bundle loads, with the one of this platform that it loads. */
function packageFiles(name: string, from: string): ProgramFile[] {
  const require = createRequire(from)
  let directory: string
  try {
    directory = packageDirectory(name, require.resolve(name))
  } catch (cause) {
    throw new AgentError('failed', `${name} is not installed beside the agent`, { cause, next: 'Run npm ci there.' })
  }
  const native = join(dirname(directory), '@koromix', `koffi-${process.platform}-${process.arch}`)
  const targets = [[`node_modules/${name}`, directory] as const]
  if (existsSync(native)) targets.push([`node_modules/@koromix/${basename(native)}`, native])
  return targets.flatMap(([path, source]) => walk(source, path))
}

function packageDirectory(name: string, file: string): string {
  const at = file.lastIndexOf(`/node_modules/${name}/`)
  return file.slice(0, at + `/node_modules/${name}`.length)
}

function walk(source: string, path: string): ProgramFile[] {
  return readdirSync(source, { withFileTypes: true }).flatMap((one): ProgramFile[] => {
    if (NOT_LOADED.has(one.name)) return []
    const inner = { path: join(path, one.name), source: join(source, one.name), isExecutable: false }
    if (one.isDirectory()) return walk(inner.source, inner.path)
    return one.isFile() && LOADED.test(one.name) ? [inner] : []
  })
}

function idOf(files: readonly ProgramFile[]): string {
  const hash = createHash('sha256')
  for (const { path, source } of files) hash.update(`${path}\n${hashOfFile(source)}\n`)
  return hash.digest('hex').slice(0, ID_LENGTH)
}

function hashOfFile(file: string): string {
  const hash = createHash('sha256')
  const buffer = Buffer.allocUnsafe(READ_BYTES)
  const opened = openSync(file, 'r')
  try {
    for (let length = 1; length > 0; ) {
      length = readSync(opened, buffer, 0, READ_BYTES, null)
      hash.update(buffer.subarray(0, length))
    }
  } finally {
    closeSync(opened)
  }
  return hash.digest('hex')
}

/** Whether all of it is there, as it should be. */
export function isWhole({ id, files }: Program, root: Root, directory: string): boolean {
  const there = files.map(({ path, isExecutable }) => ({ path, source: root.at(join(directory, path)), isExecutable }))
  return there.every(({ source }) => existsSync(source)) && idOf(there) === id
}

/** Copies it: at its place there is all of it, or nothing. */
export function copyProgram({ files }: Program, root: Root, directory: string): void {
  const [place, temporary] = [root.at(directory), root.at(`${directory}.new`)]
  rmSync(temporary, { recursive: true, force: true })
  mkdirSync(temporary, { mode: 0o755 })
  for (const { path, source, isExecutable } of files) {
    const target = join(temporary, path)
    mkdirSync(dirname(target), { recursive: true, mode: 0o755 })
    copyFileSync(source, target, constants.COPYFILE_FICLONE)
    chmodSync(target, isExecutable ? 0o755 : 0o644)
  }
  // What is there is not whole.
  rmSync(place, { recursive: true, force: true })
  renameSync(temporary, place)
}

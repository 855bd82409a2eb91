/**
 * What `agent install` changed on this machine, so that `agent uninstall` takes away exactly that: written down before it is done, so that an
 * installation that was cut off can be ended or undone.
 *
 * It lies in a directory of root's, beside the agent's state and not in it: what it says is done as root, so the agent's user must not be
 * able to write it. With it are copies of files that were there before.
 */
import { closeSync, fsyncSync, mkdirSync, openSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { AgentError, reasonOf } from '../error.ts'
import { hashOf, type Root } from './root.ts'

const DIRECTORY = '/var/lib/undernet-install'
const FORMAT = 1
/** A dozen files with their directories, three parts with a file each registry. */
const ENTRIES_MAX = 1_000

/** What a change is for: the agent itself, or a program that is to use it. */
export const PARTS = ['agent', 'nix', 'containers', 'dns'] as const
export type Part = (typeof PARTS)[number]

/** A file that was there before: its copy is named by its hash. */
export type Before = { hash: string; mode: number; uid: number; gid: number }

export type FileEntry = {
  kind: 'file'
  path: string
  part: Part
  /** `block`: only the lines between our marks are ours. */
  how: 'whole' | 'block'
  before: Before | null
  /** Hashes of what was written, the newest last: one that is none of them is somebody else's. */
  ours: string[]
}
export type Entry =
  | FileEntry
  | { kind: 'directory'; path: string; part: Part }
  | { kind: 'link'; path: string; part: Part; target: string }
  /** A directory with all that is in it. */
  | { kind: 'tree'; path: string; part: Part }
  /** A user with a group of the same name, by the name as path. */
  | { kind: 'user'; path: string; part: Part }

export class Manifest {
  readonly #root: Root
  readonly #entries: Map<string, Entry>
  #isUnfinished: boolean

  private constructor(root: Root, entries: readonly Entry[], isUnfinished: boolean) {
    this.#root = root
    this.#entries = new Map(entries.map((entry) => [entry.path, entry]))
    this.#isUnfinished = isUnfinished
  }

  /** That of an earlier installation, or an empty one. @throws {AgentError} `corrupt`, `not-allowed` */
  static load(root: Root): Manifest {
    const file = join(DIRECTORY, 'manifest.json')
    const text = root.read(file)?.toString('utf8')
    if (text === undefined) return new Manifest(root, [], false)
    try {
      const { entries, isUnfinished } = parseManifest(JSON.parse(text))
      return new Manifest(root, entries, isUnfinished)
    } catch (cause) {
      throw new AgentError('corrupt', `${root.at(file)} is not what \`agent install\` wrote: ${reasonOf(cause)}`, {
        cause,
        next: 'Restore it from a backup, or move it away and take away by hand what was installed.',
      })
    }
  }

  /** In the order in which they were made. */
  get entries(): readonly Entry[] {
    return [...this.#entries.values()]
  }

  /** Something was begun and not ended: programs may not have heard of files that are in their places. */
  get isUnfinished(): boolean {
    return this.#isUnfinished
  }

  begin(): void {
    this.#isUnfinished = true
    this.#save()
  }

  finish(): void {
    this.#isUnfinished = false
    this.#save()
  }

  get(path: string): Entry | undefined {
    return this.#entries.get(path)
  }

  file(path: string): FileEntry | undefined {
    const entry = this.#entries.get(path)
    return entry?.kind === 'file' ? entry : undefined
  }

  /** Before the change is made. */
  record(entry: Entry): void {
    this.#entries.set(entry.path, entry)
    this.#save()
  }

  /** After the change was undone. */
  forget(path: string): void {
    if (this.#entries.delete(path)) this.#save()
  }

  /** Copies a file that will be changed. */
  keep(bytes: Buffer): string {
    const hash = hashOf(bytes)
    const file = this.#root.at(join(DIRECTORY, hash))
    this.#makeDirectory()
    writeDurably(file, bytes)
    return hash
  }

  /** The copy. @throws {AgentError} `corrupt` */
  kept(hash: string): Buffer {
    const bytes = this.#root.read(join(DIRECTORY, hash))
    if (bytes !== undefined && hashOf(bytes) === hash) return bytes
    throw new AgentError('corrupt', `the copy ${this.#root.at(join(DIRECTORY, hash))} is missing or damaged`)
  }

  /** When nothing is left of an installation. Directories that were made for others stay with their entries: see undo.ts. */
  remove(): void {
    rmSync(this.#root.at(DIRECTORY), { recursive: true, force: true })
  }

  #save(): void {
    this.#makeDirectory()
    const text = `${JSON.stringify({ format: FORMAT, isUnfinished: this.#isUnfinished, entries: this.entries }, undefined, 1)}\n`
    writeDurably(this.#root.at(join(DIRECTORY, 'manifest.json')), Buffer.from(text))
  }

  #makeDirectory(): void {
    // Of an image that is being built, these may be the first.
    for (const path of ['/var', dirname(DIRECTORY), DIRECTORY]) {
      if (this.#root.stat(path) !== undefined) continue
      if (path !== DIRECTORY) this.#entries.set(path, { kind: 'directory', path, part: 'agent' })
      mkdirSync(this.#root.at(path), { mode: path === DIRECTORY ? 0o700 : 0o755 })
    }
  }
}

function writeDurably(file: string, bytes: Buffer): void {
  const temporary = `${file}.new`
  writeFileSync(temporary, bytes, { mode: 0o600 })
  const opened = openSync(temporary, 'r')
  try {
    fsyncSync(opened)
  } finally {
    closeSync(opened)
  }
  renameSync(temporary, file)
}

/** @throws a plain Error */
export function parseManifest(raw: unknown): { entries: Entry[]; isUnfinished: boolean } {
  const { format, entries, isUnfinished } = record(raw)
  if (format !== FORMAT) throw new Error(`its format is ${JSON.stringify(format)}, not ${FORMAT}`)
  if (!Array.isArray(entries) || entries.length > ENTRIES_MAX) throw new Error('it has no list of entries')
  return { entries: entries.map(parseEntry), isUnfinished: isUnfinished === true }
}

function parseEntry(raw: unknown): Entry {
  const { kind, path, part, target, how, before, ours } = record(raw)
  if (typeof path !== 'string' || path.includes('\0')) throw new Error('an entry has no path')
  const isName = kind === 'user'
  if (isName ? !/^[a-z_][a-z0-9_-]{0,30}$/.test(path) : !isPlain(path))
    throw new Error(`${path} is no place for an entry`)
  if (!PARTS.includes(part as Part)) throw new Error(`${path} is for ${JSON.stringify(part)}`)
  const common = { path, part: part as Part }
  if (kind === 'directory' || kind === 'tree' || kind === 'user') return { kind, ...common }
  if (kind === 'link' && typeof target === 'string') return { kind, ...common, target }
  if (kind !== 'file' || (how !== 'whole' && how !== 'block')) throw new Error(`${path} is of an unknown kind`)
  if (!Array.isArray(ours) || !ours.every(isHash)) throw new Error(`${path} has no hashes`)
  return { kind, ...common, how, before: before === null ? null : parseBefore(before), ours }
}

function parseBefore(raw: unknown): Before {
  const { hash, mode, uid, gid } = record(raw)
  if (!isHash(hash)) throw new Error('a copy without a hash')
  return { hash, mode: whole(mode, 0o7777), uid: whole(uid, 2 ** 32), gid: whole(gid, 2 ** 32) }
}

function record(raw: unknown): Record<string, unknown> {
  if (typeof raw !== 'object' || raw === null || Array.isArray(raw)) throw new Error('an object is missing')
  return raw as Record<string, unknown>
}

function whole(raw: unknown, max: number): number {
  if (typeof raw === 'number' && Number.isInteger(raw) && raw >= 0 && raw <= max) return raw
  throw new Error(`${JSON.stringify(raw)} is not a number from 0 to ${max}`)
}

function isHash(raw: unknown): raw is string {
  return typeof raw === 'string' && /^[0-9a-f]{64}$/.test(raw)
}

/** Absolute, without steps up, and not the root itself. */
function isPlain(path: string): boolean {
  return (
    path.startsWith('/') &&
    path.length > 1 &&
    !path
      .split('/')
      .slice(1)
      .some((name) => name === '' || /^\.\.?$/.test(name))
  )
}

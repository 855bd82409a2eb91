/**
 * What should be on the machine, compared with what is there: a plan that can be shown, and is then carried out change by change. Each is
 * written into the manifest before it is made, so that whatever cuts it off, it can be made or undone later.
 *
 * Nothing of somebody else's is replaced: a file that we did not make is in the way, unless it was said (`force`) that a copy is to be kept
 * of it. A file that we made, and that somebody changed since, is his.
 */
import { mkdirSync } from 'node:fs'
import { dirname } from 'node:path'
import { AgentError } from '../error.ts'
import { withBlock, withoutBlock } from './block.ts'
import type { Before, FileEntry, Manifest, Part } from './manifest.ts'
import { copyProgram, isWhole, type Program } from './program.ts'
import { hashOf, type Root } from './root.ts'

/** Of one file: one for each version that was installed without an uninstall between. */
const HASHES_MAX = 8

export type Wanted =
  /** `isYours`: made for people to change; one that is there is left alone. */
  | { kind: 'file'; part: Part; path: string; text: string; mode: number; isYours?: boolean }
  | { kind: 'block'; part: Part; path: string; lines: readonly string[] }
  | { kind: 'link'; part: Part; path: string; target: string }
  | { kind: 'tree'; part: Part; path: string; program: Program }

export type Step = {
  wanted: Wanted
  action: 'create' | 'replace' | 'edit' | 'same' | 'keep'
  /** For people: why nothing is done, or what else there is to know. */
  note?: string
  /** Texts of files. */
  before?: string
  after?: string
}

/** What each file needs. Reads, and changes nothing. @throws {AgentError} `taken` with all that is in the way */
export function planChanges(wanted: readonly Wanted[], root: Root, manifest: Manifest, force = false): Step[] {
  const inTheWay: string[] = []
  const steps = wanted.map((one): Step => {
    const step = planOne(one, root, manifest, force)
    if (step !== undefined) return step
    const isLink = root.stat(one.path)?.isSymbolicLink() === true
    inTheWay.push(`${root.at(one.path)}${isLink ? ' (a link: whoever made it has to remove it)' : ''}`)
    return { wanted: one, action: 'keep' }
  })
  if (inTheWay.length === 0) return steps
  throw new AgentError('taken', `this is there and is not of \`agent install\`:\n${inTheWay.join('\n')}`, {
    next: 'Move it away, or give --force: a copy is then kept, which `agent uninstall` puts back.',
  })
}

/** The same, where nobody asked for it anew: what somebody took out since he does not want. */
export function withoutTakenOut(steps: readonly Step[], manifest: Manifest): Step[] {
  return steps.map((step) => {
    const { wanted, action, before } = step
    if (manifest.isUnfinished || manifest.file(wanted.path) === undefined) return step
    const isGone = action === 'create' || (wanted.kind === 'block' && withoutBlock(before ?? '') === undefined)
    if (!isGone || action === 'same' || action === 'keep') return step
    return { wanted, action: 'keep', note: `taken out by somebody; --${wanted.part} puts it in again` }
  })
}

/** undefined when something is in the way. */
function planOne(wanted: Wanted, root: Root, manifest: Manifest, force: boolean): Step | undefined {
  switch (wanted.kind) {
    case 'file':
      return planFile(wanted, root, manifest, force)
    case 'block':
      return planBlock(wanted, root)
    case 'link': {
      const there = root.stat(wanted.path)
      if (there === undefined) return { wanted, action: 'create' }
      const target = root.linkTarget(wanted.path)
      if (target === wanted.target) return { wanted, action: 'same' }
      return manifest.get(wanted.path)?.kind === 'link' && target !== undefined
        ? { wanted, action: 'replace' }
        : undefined
    }
    case 'tree': {
      if (root.stat(wanted.path) === undefined) return { wanted, action: 'create' }
      if (isWhole(wanted.program, root, wanted.path)) return { wanted, action: 'same' }
      return manifest.get(wanted.path)?.kind === 'tree' ? { wanted, action: 'replace' } : undefined
    }
  }
}

function planFile(
  wanted: Extract<Wanted, { kind: 'file' }>,
  root: Root,
  manifest: Manifest,
  force: boolean,
): Step | undefined {
  // What it leads to is not what is meant.
  if (root.stat(wanted.path)?.isSymbolicLink() && !wanted.isYours) return undefined
  const there = root.read(wanted.path)
  const after = wanted.text
  if (there === undefined) return { wanted, action: 'create', after }
  if (there.equals(Buffer.from(after))) return { wanted, action: 'same' }
  const before = there.toString('utf8')
  const known = manifest.file(wanted.path)
  const hash = hashOf(there)
  // Of the second kind is one of which a copy was made just before an installation was cut off.
  if (known?.ours.includes(hash) || known?.before?.hash === hash) return { wanted, action: 'replace', before, after }
  if (wanted.isYours) return { wanted, action: 'keep', note: 'it is yours' }
  if (known !== undefined)
    return { wanted, action: 'keep', note: 'it was changed since; remove it to have it made anew' }
  return force ? { wanted, action: 'replace', before, after, note: 'a copy is kept' } : undefined
}

function planBlock(wanted: Extract<Wanted, { kind: 'block' }>, root: Root): Step {
  const there = root.read(wanted.path)
  if (there === undefined) return { wanted, action: 'create', after: withBlock('', wanted.lines) }
  const before = there.toString('latin1')
  const others = new Set((withoutBlock(before) ?? before).split('\n').map((line) => line.trim()))
  if (withoutBlock(before) === undefined && wanted.lines.every((line) => others.has(line.trim())))
    return { wanted, action: 'keep', note: 'the lines are there already, and yours' }
  // What is put in has the encoding that everything else has.
  const after = withBlock(
    before,
    wanted.lines.map((line) => Buffer.from(line).toString('latin1')),
  )
  return after === before ? { wanted, action: 'same' } : { wanted, action: 'edit', before, after }
}

/** Makes one change; nothing when there is nothing to do. */
export function applyChange({ wanted, action, after }: Step, root: Root, manifest: Manifest): void {
  if (action === 'same' || action === 'keep') return
  const { path, part } = wanted
  makeDirectories(dirname(path), part, root, manifest)
  switch (wanted.kind) {
    case 'tree':
      manifest.record({ kind: 'tree', path, part })
      copyProgram(wanted.program, root, path)
      break
    case 'link':
      manifest.record({ kind: 'link', path, part, target: wanted.target })
      root.link(path, wanted.target)
      break
    case 'file':
    case 'block': {
      const isBlock = wanted.kind === 'block'
      const bytes = Buffer.from(after ?? '', isBlock ? 'latin1' : 'utf8')
      const there = root.read(path)
      manifest.record(entryFor(wanted, there, bytes, root, manifest))
      const attributes =
        there === undefined || !isBlock ? { mode: isBlock ? 0o644 : wanted.mode } : root.attributes(path)
      root.write(path, bytes, attributes)
    }
  }
}

/** What was there first is what comes back, unless somebody else changed the file between. */
function entryFor(
  { kind, path, part }: Wanted,
  there: Buffer | undefined,
  bytes: Buffer,
  root: Root,
  manifest: Manifest,
): FileEntry {
  const known = manifest.file(path)
  const isOurs = there !== undefined && known?.ours.includes(hashOf(there)) === true
  const how = kind === 'block' ? 'block' : 'whole'
  if (known !== undefined && (isOurs || there === undefined)) {
    const ours = [...known.ours.filter((hash) => hash !== hashOf(bytes)), hashOf(bytes)].slice(-HASHES_MAX)
    return { ...known, before: there === undefined ? null : known.before, ours }
  }
  // Of a file that has our lines already, what is left without them.
  const old =
    there && how === 'block'
      ? Buffer.from(withoutBlock(there.toString('latin1')) ?? there.toString('latin1'), 'latin1')
      : there
  const before: Before | null = old === undefined ? null : { hash: manifest.keep(old), ...root.attributes(path) }
  return { kind: 'file', path, part, how, before, ours: [hashOf(bytes)] }
}

/** Each that is missing, from above; what we made is taken away when it is empty. */
function makeDirectories(path: string, part: Part, root: Root, manifest: Manifest): void {
  const missing: string[] = []
  for (let one = path; one !== '/' && root.stat(one) === undefined; one = dirname(one)) missing.unshift(one)
  for (const one of missing) {
    manifest.record({ kind: 'directory', path: one, part })
    mkdirSync(root.at(one), { mode: 0o755 })
  }
  // The umask of who installs is his own affair.
  for (const one of missing) root.makeReadable(one)
}

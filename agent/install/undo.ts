/**
 * Takes away what the manifest says was put on this machine, the newest first. What somebody changed since is left to him, and said; of a
 * file of somebody else's only our lines go. Each step can be cut off and done again.
 */
import { rmdirSync, rmSync } from 'node:fs'
import { withoutBlock } from './block.ts'
import type { Entry, FileEntry, Manifest, Part } from './manifest.ts'
import { hashOf, type Root } from './root.ts'

export type Undoing = {
  entry: Entry
  action: 'remove' | 'restore' | 'edit' | 'gone' | 'keep'
  note?: string
  before?: string
  after?: string
}

/** What undoing each entry comes to; users and directories are for those who call. */
export function planUndo(root: Root, manifest: Manifest, parts: readonly Part[], isPurge = false): Undoing[] {
  return manifest.entries
    .filter(({ part }) => parts.includes(part))
    .toReversed()
    .flatMap((entry): Undoing[] => {
      if (entry.kind === 'user' || entry.kind === 'directory') return []
      if (entry.kind === 'file') return [planFile(entry, root, manifest, isPurge)]
      const there = root.stat(entry.path)
      if (there === undefined) return [{ entry, action: 'gone' }]
      if (entry.kind === 'link' && root.linkTarget(entry.path) !== entry.target)
        return [{ entry, action: 'keep', note: 'it leads elsewhere now' }]
      return [{ entry, action: 'remove' }]
    })
}

function planFile(entry: FileEntry, root: Root, manifest: Manifest, isPurge: boolean): Undoing {
  const there = root.read(entry.path)
  if (there === undefined) return { entry, action: 'gone' }
  const hash = hashOf(there)
  const before = there.toString('latin1')
  if (entry.ours.includes(hash)) {
    if (entry.before === null) return { entry, action: 'remove' }
    return { entry, action: 'restore', before, after: manifest.kept(entry.before.hash).toString('latin1') }
  }
  // It was cut off before it was written, or put back already.
  if (hash === entry.before?.hash) return { entry, action: 'gone' }
  const rest = entry.how === 'block' ? withoutBlock(before) : undefined
  if (rest !== undefined)
    return rest === '' && entry.before === null
      ? { entry, action: 'remove' }
      : { entry, action: 'edit', before, after: rest, note: 'it was changed since: only the lines of the agent go' }
  if (isPurge && entry.before === null && entry.part === 'agent')
    return { entry, action: 'remove', note: 'it was changed since' }
  return { entry, action: 'keep', note: 'it was changed since' }
}

/** What is left to somebody stays in the manifest: a later purge may take it after all. */
export function applyUndo({ entry, action, after }: Undoing, root: Root, manifest: Manifest): void {
  const { path } = entry
  if (action === 'keep') return
  if (entry.kind === 'file') root.sweep(path)
  if (entry.kind === 'tree') rmSync(root.at(`${path}.new`), { recursive: true, force: true })
  if (action === 'remove') rmSync(root.at(path), { recursive: entry.kind === 'tree', force: true })
  else if (action === 'restore' && entry.kind === 'file' && entry.before !== null)
    root.write(path, manifest.kept(entry.before.hash), entry.before)
  else if (action === 'edit') root.write(path, Buffer.from(after ?? '', 'latin1'), root.attributes(path))
  manifest.forget(path)
}

/** Removes the directories that were made for these parts and are empty now. Those that are not stay, and are nobody's from then on. */
export function removeDirectories(root: Root, manifest: Manifest, parts: readonly Part[]): void {
  for (const { kind, path, part } of manifest.entries.toReversed()) {
    if (kind !== 'directory' || !parts.includes(part)) continue
    if (isRemoved(root, path)) manifest.forget(path)
  }
}

/** After the manifest is gone: the directories that it lay in. */
export function removeLastDirectories(root: Root, paths: readonly string[]): void {
  for (const path of paths) isRemoved(root, path)
}

function isRemoved(root: Root, path: string): boolean {
  try {
    rmdirSync(root.at(path))
    return true
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'ENOENT') return true
    if (code === 'ENOTEMPTY' || code === 'EEXIST' || code === 'ENOTDIR') return false
    throw error
  }
}

/**
 * What is in a NAR, as the `.ls` file of a binary cache says it (`nix store ls` reads it, and fetches single files by their offsets). Made
 * of the NAR itself. Follows listNar of Nix (libstore/nar-accessor.cc).
 */

import { WireError } from '../../protocols/error.ts'
import { NAR_MAGIC, type NarVisitor, parseNar } from '../../protocols/nar/read.ts'

/** A listing is held in memory: each entry takes a few hundred bytes. */
const ENTRIES_MAX = 200_000

type Entry =
  | { type: 'directory'; entries: Record<string, Entry> }
  | { type: 'regular'; size: number; executable?: true; narOffset: number }
  | { type: 'symlink'; target: string }

/** The text of the `.ls` file. @throws {WireError} as parseNar; `too-large` for one of too many files */
export async function listNar(chunks: AsyncIterable<Uint8Array>): Promise<string> {
  const listing = new Listing()
  await parseNar(chunks, listing)
  return JSON.stringify({ version: 1, root: listing.root })
}

class Listing implements NarVisitor {
  root: Entry | undefined
  /** Where the next byte of the NAR stands: what the grammar requires before it is known from the nodes. */
  #at = stringBytes(NAR_MAGIC.length)
  /** The directories that are open, outermost first. */
  readonly #open: { path: Buffer; entries: Record<string, Entry> }[] = []
  #sizeBytes = 0
  #count = 0

  directory(path: Buffer): void {
    const entries: Record<string, Entry> = Object.create(null)
    this.#begin(path, { type: 'directory', entries }, 'directory')
    this.#open.push({ path, entries })
  }

  symlink(path: Buffer, target: Buffer): void {
    this.#begin(path, { type: 'symlink', target: target.toString() }, 'symlink')
    this.#at += words('target') + stringBytes(target.byteLength)
    this.#endLeaf()
  }

  file(path: Buffer, { executable, sizeBytes }: { executable: boolean; sizeBytes: number }): void {
    const entry: Entry = { type: 'regular', size: sizeBytes, ...(executable && { executable }), narOffset: 0 }
    this.#begin(path, entry, 'regular')
    this.#at += (executable ? words('executable', '') : 0) + words('contents') + 8
    entry.narOffset = this.#at
    this.#sizeBytes = sizeBytes
  }

  contents(): void {}

  fileEnd(): void {
    this.#at += stringBytes(this.#sizeBytes) - 8
    this.#endLeaf()
  }

  #begin(path: Buffer, entry: Entry, type: string): void {
    if (++this.#count > ENTRIES_MAX) throw new WireError('too-large', `a NAR of more than ${ENTRIES_MAX} files`)
    const slash = path.lastIndexOf(0x2f)
    const parent = path.subarray(0, Math.max(0, slash))
    while (path.byteLength > 0 && this.#open.length > 1 && !this.#open.at(-1)?.path.equals(parent)) {
      this.#open.pop()
      // Of the directory, and of its entry.
      this.#at += words(')', ')')
    }
    if (path.byteLength === 0) this.root = entry
    else {
      const name = path.subarray(slash + 1)
      this.#at += words('entry', '(', 'name') + stringBytes(name.byteLength) + words('node')
      const directory = this.#open.at(-1)
      if (directory) directory.entries[name.toString()] = entry
    }
    this.#at += words('(', 'type', type)
  }

  #endLeaf(): void {
    this.#at += words(')') + (this.#open.length > 0 ? words(')') : 0)
  }
}

function words(...all: string[]): number {
  return all.reduce((sum, word) => sum + stringBytes(word.length), 0)
}

/** Of a string with its length before it, and zeros behind. */
function stringBytes(length: number): number {
  return 8 + Math.ceil(length / 8) * 8
}

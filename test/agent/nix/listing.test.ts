/** Listings of NARs: every file is where the listing says, in whatever tree. */
import { chmodSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import fc from 'fast-check'
import { expect, it } from 'vitest'
import { listNar } from '../../../agent/nix/listing.ts'
import { layoutNar } from '../../../protocols/nar/write.ts'
import { readAll } from './peers.ts'

type Tree = { file: string; executable: boolean } | { link: string } | { directory: Record<string, Tree> }
type Listed = {
  type: string
  size?: number
  executable?: true
  narOffset?: number
  target?: string
  entries?: Record<string, Listed>
}

const name = fc.stringMatching(/^[a-z.\-_]{1,12}$/).filter((one) => one !== '.' && one !== '..')
const { tree } = fc.letrec<{ tree: Tree }>((tie) => ({
  tree: fc.oneof(
    { maxDepth: 4, withCrossShrink: true },
    fc.record({ file: fc.string({ maxLength: 40 }), executable: fc.boolean() }),
    fc.record({ link: fc.stringMatching(/^[a-z/.]{1,20}$/) }),
    fc.record({ directory: fc.dictionary(name, tie('tree'), { maxKeys: 5 }) }),
  ),
}))

function write(path: string, made: Tree): void {
  if ('link' in made) symlinkSync(made.link, path)
  else if ('file' in made) {
    writeFileSync(path, made.file)
    chmodSync(path, made.executable ? 0o755 : 0o644)
  } else {
    mkdirSync(path)
    for (const [entry, child] of Object.entries(made.directory)) write(join(path, entry), child)
  }
}

function check(nar: Buffer, made: Tree, listed: Listed | undefined): void {
  if ('link' in made) expect(listed).toEqual({ type: 'symlink', target: made.link })
  else if ('file' in made) {
    const { narOffset = -1, size = -1 } = listed ?? {}
    expect(nar.subarray(narOffset, narOffset + size).toString()).toBe(made.file)
    expect(nar.readBigUInt64LE(narOffset - 8)).toBe(BigInt(size))
    expect(listed?.executable ?? false).toBe(made.executable)
  } else {
    expect(Object.keys(listed?.entries ?? {}).sort()).toEqual(Object.keys(made.directory).sort())
    for (const [entry, child] of Object.entries(made.directory)) check(nar, child, listed?.entries?.[entry])
  }
}

it('says of every file where it is in the NAR', async () => {
  const directory = mkdtempSync(join(tmpdir(), 'undernet-listing-'))
  let count = 0
  try {
    await fc.assert(
      fc.asyncProperty(tree, async (made) => {
        const path = join(directory, `${count++}`)
        write(path, made)
        const layout = await layoutNar(path)
        const nar = await readAll({ sizeBytes: layout.sizeBytes, read: (...range) => layout.read(...range) })
        const text = await listNar(chunksOf(nar))
        const { version, root } = JSON.parse(text) as { version: number; root: Listed }
        expect(version).toBe(1)
        check(nar, made, root)
      }),
      { numRuns: 60 },
    )
  } finally {
    rmSync(directory, { recursive: true, force: true })
  }
})

async function* chunksOf(nar: Buffer) {
  for (let at = 0; at < nar.byteLength; at += 100) yield nar.subarray(at, at + 100)
}

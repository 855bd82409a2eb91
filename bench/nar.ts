/**
 * How fast the NAR of a tree is made: the layout index and its bytes, against `nix-store --dump`; and its hash, against `nix-hash`. Many
 * small files and a few large ones, from the file cache. Both sides drop the bytes: Nix writes to /dev/null.
 */
import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { closeSync, mkdirSync, mkdtempSync, openSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { layoutNar } from '../protocols/nar/write.ts'
import { hasNix } from '../test/nix-paths.ts'
import { type Bench, byTurns, type Report, scaled, timed } from './harness.ts'
import { Random } from './random.ts'

const TURNS = { countMax: 11, msMax: 90_000 }
const MB = 1e6
/** Like a package of sources: 200 directories of 100 files, 0 to 8 KB each. */
const SMALL = { directories: 200, filesEach: 100, bytesMax: 8_192 }
/** Like a closure of libraries and models. */
const LARGE = { files: 4, bytesEach: 256 * 1024 * 1024 }
const SEED = 1
const NIX_HASH = 'nix-hash'

export const bench: Bench = {
  name: 'nar',
  question: 'How fast is a tree turned into a NAR, and hashed as one?',
  minutesMax: 10,
  run,
}

async function run(report: Report, signal: AbortSignal): Promise<void> {
  if (!hasNix) return report.note('Nix is not installed: there is nothing to compare with.')
  using trees = new Trees()
  await compare(report, 'small files', trees.small(), signal)
  await compare(report, 'large files', trees.large(), signal)
}

async function compare(report: Report, what: string, path: string, signal: AbortSignal): Promise<void> {
  const sizeBytes = await checkSame(path, signal)
  const mbPerSecond = async (work: () => Promise<unknown>) => sizeBytes / MB / ((await timed(work)) / 1_000)
  const samples = await byTurns(
    {
      write: () => mbPerSecond(() => written(path, signal)),
      dump: () => mbPerSecond(() => dropped('nix-store', ['--dump', path])),
      hash: () => mbPerSecond(() => hashed(path, signal)),
      nixHash: () => mbPerSecond(() => dropped(NIX_HASH, ['--type', 'sha256', path])),
    },
    TURNS,
  )
  const unit = 'MB/s'
  const size = `${Math.round(sizeBytes / MB)} MB`
  report.result({
    what: `write, ${what} (${size})`,
    samples: samples.write,
    unit,
    against: { what: 'nix-store --dump', samples: samples.dump },
  })
  report.result({
    what: `hash, ${what} (${size})`,
    samples: samples.hash,
    unit,
    against: { what: 'nix-hash', samples: samples.nixHash },
  })
}

/** A fast answer that is wrong is none. Large trees are compared by their hash. */
async function checkSame(path: string, signal: AbortSignal): Promise<number> {
  const { sizeBytes, digest } = await hashed(path, signal)
  const child = spawn(NIX_HASH, ['--type', 'sha256', path], { stdio: ['ignore', 'pipe', 'inherit'] })
  const [chunks] = await Promise.all([Array.fromAsync(child.stdout), once(child, 'close')])
  const theirs = Buffer.concat(chunks as Buffer[])
    .toString()
    .trim()
  if (theirs !== digest) throw new Error(`Nix makes another NAR of ${path}`)
  return sizeBytes
}

async function written(path: string, signal: AbortSignal): Promise<void> {
  const layout = await layoutNar(path, signal)
  for await (const _ of layout.read(0, layout.sizeBytes, signal)) {
    // Dropped.
  }
}

async function hashed(path: string, signal: AbortSignal): Promise<{ sizeBytes: number; digest: string }> {
  const layout = await layoutNar(path, signal)
  const hash = createHash('sha256')
  for await (const chunk of layout.read(0, layout.sizeBytes, signal)) hash.update(chunk)
  return { sizeBytes: layout.sizeBytes, digest: hash.digest('hex') }
}

async function dropped(command: string, args: string[]): Promise<void> {
  const nowhere = openSync('/dev/null', 'w')
  try {
    const [code] = (await once(spawn(command, args, { stdio: ['ignore', nowhere, 'inherit'] }), 'exit')) as [number]
    if (code !== 0) throw new Error(`${command} ended with ${code}`)
  } finally {
    closeSync(nowhere)
  }
}

/** The same trees in every run. */
class Trees implements Disposable {
  readonly #directory = mkdtempSync(join(tmpdir(), 'undernet-nar-'))
  readonly #random = new Random(SEED)

  small(): string {
    const root = join(this.#directory, 'small')
    const { directories, filesEach, bytesMax } = SMALL
    for (let directory = 0; directory < scaled(directories); directory++) {
      const parent = join(root, `${directory % 10}`, `directory-${directory}`)
      mkdirSync(parent, { recursive: true })
      for (let file = 0; file < filesEach; file++) {
        const mode = file % 10 === 0 ? 0o755 : 0o644
        writeFileSync(join(parent, `file-${file}`), this.#random.bytes(this.#random.below(bytesMax)), { mode })
      }
      symlinkSync('file-0', join(parent, 'link'))
    }
    return root
  }

  large(): string {
    const root = join(this.#directory, 'large')
    mkdirSync(root)
    for (let file = 0; file < scaled(LARGE.files); file++)
      writeFileSync(join(root, `file-${file}`), this.#random.bytes(LARGE.bytesEach))
    return root
  }

  [Symbol.dispose](): void {
    rmSync(this.#directory, { recursive: true, force: true })
  }
}

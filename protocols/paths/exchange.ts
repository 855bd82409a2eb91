/**
 * `/undernet/paths/1`, on a stream of the network: what a node that gives out its Nix store says of store paths. Both sides; see spec.md beside this file.
 * Whom to ask, and whether to believe the answer, is the caller's.
 */
import { z } from 'zod'
import { SIGNATURE_LENGTH_MAX, SIGNATURES_MAX, storePath } from '../artifact/artifact.ts'
import { decodeCbor, encodeCbor } from '../cbor.ts'
import { WireError } from '../error.ts'
import type { Frames } from '../frame.ts'

export const PATHS_PROTOCOL = '/undernet/paths/1'
/** Paths of one request: Nix asks for 25 at a time. */
export const ASKED_MAX = 64
/** Of 64 hash parts, with room for fields of later versions. */
const REQUEST_BYTES_MAX = 4 * 1024
/** An answer stops growing here; the asker asks for the rest. */
export const ANSWER_BYTES_STOP = 128 * 1024
/** One path beyond that. The most that Nix's own packages refer to is a few thousand. */
const FACTS_BYTES_MAX = 384 * 1024
const ANSWER_BYTES_MAX = ANSWER_BYTES_STOP + FACTS_BYTES_MAX
export const REFERENCES_MAX = 4_096
/** A stream stays open while a closure is asked for. */
const REQUESTS_MAX = 4_096

/** 32 digits of Nix's base 32. */
const hashPart = z.string().regex(/^[0-9a-df-np-sv-z]{32}$/, 'not a hash part')
/** `<hash part>-<name>`. */
const baseName = z.string().regex(/^[0-9a-df-np-sv-z]{32}-[0-9a-zA-Z+\-._?=]{1,211}$/, 'not the name of a store path')
const digest = z.custom<Uint8Array>((value) => value instanceof Uint8Array && value.byteLength === 32, 'not 32 bytes')

const requestSchema = z.object({ paths: z.array(hashPart).min(1).max(ASKED_MAX) })
/** Unknown fields are ignored: later versions add some. */
const facts = z.object({
  path: storePath,
  /** SHA-256 of its NAR. */
  nar: digest,
  /** Size of its NAR. */
  sizeBytes: z.int().min(1).max(Number.MAX_SAFE_INTEGER),
  /** Sorted, each once; a path may refer to itself. */
  references: z.array(baseName).max(REFERENCES_MAX).refine(isAscending, 'not sorted'),
  /** Each `name:base64`. */
  signatures: z.array(z.string().max(SIGNATURE_LENGTH_MAX)).max(SIGNATURES_MAX),
  ca: z.string().max(SIGNATURE_LENGTH_MAX).optional(),
  /** What it was built by. Nothing follows from it. */
  deriver: baseName.optional(),
})
const answerSchema = z.object({ paths: z.array(facts.nullable()).min(1).max(ASKED_MAX) })

export type PathsRequest = z.infer<typeof requestSchema>
export type PathFacts = z.infer<typeof facts>
/** For the first of the paths that were asked for, in their order; null for one that the answerer does not give out. */
export type PathsAnswer = z.infer<typeof answerSchema>

/** Exported for the vectors. */
export const encodePathsRequest = (request: PathsRequest): Uint8Array => encodeCbor(request)
export const encodePathsAnswer = (answer: PathsAnswer): Uint8Array => encodeCbor(answer)

/** @throws {WireError} `malformed` */
export function decodePathsRequest(bytes: Uint8Array): PathsRequest {
  return decodeCbor(bytes, requestSchema)
}

/** @throws {WireError} `malformed` */
export function decodePathsAnswer(bytes: Uint8Array): PathsAnswer {
  return decodeCbor(bytes, answerSchema)
}

/** About how many bytes the facts of a path take in an answer. */
export function factsBytes({ path, references, signatures, ca = '', deriver = '' }: PathFacts): number {
  const texts = [path, ...references, ...signatures, ca, deriver]
  return texts.reduce((sum, text) => sum + text.length + 3, 128)
}

/** Whether the facts of a path fit an answer at all. */
export function factsFit(some: PathFacts): boolean {
  return facts.safeParse(some).success && factsBytes(some) <= FACTS_BYTES_MAX
}

/**
 * Asks about paths, by their hash parts, and again for those that the answer had no room for. Facts are about the path that was asked for.
 *
 * @throws {WireError} `closed`, `malformed`, `too-large`
 */
export async function askPaths(
  frames: Frames,
  hashParts: readonly string[],
  signal: AbortSignal,
): Promise<(PathFacts | null)[]> {
  const all: (PathFacts | null)[] = []
  while (all.length < hashParts.length) {
    const asked = hashParts.slice(all.length, all.length + ASKED_MAX)
    await frames.write(encodePathsRequest({ paths: asked }), signal)
    const frame = await frames.read(signal, ANSWER_BYTES_MAX)
    if (!frame) throw new WireError('closed', 'the peer closed the stream instead of answering')
    const { paths } = decodePathsAnswer(frame)
    if (paths.length > asked.length) throw new WireError('malformed', 'more answers than questions')
    for (const [at, some] of paths.entries()) {
      const name = some?.path.slice(some.path.lastIndexOf('/') + 1)
      if (name !== undefined && !name.startsWith(`${asked[at]}-`))
        throw new WireError('malformed', `facts of ${name} for ${asked[at]}`)
      all.push(some)
    }
  }
  return all
}

/**
 * Answers until the asker ends the stream. `factsOf` is asked for one path after the other.
 *
 * @throws {WireError} `malformed`, `too-large`, `closed`
 */
export async function answerPaths(
  frames: Frames,
  factsOf: (hashPart: string, signal: AbortSignal) => Promise<PathFacts | null>,
  signal: () => AbortSignal,
): Promise<void> {
  for (let nth = 0; nth < REQUESTS_MAX; nth++) {
    const limited = signal()
    const frame = await frames.read(limited, REQUEST_BYTES_MAX)
    if (!frame) return
    const paths: PathsAnswer['paths'] = []
    let bytes = 0
    for (const one of decodePathsRequest(frame).paths) {
      const some = await factsOf(one, limited)
      paths.push(some)
      bytes += some === null ? 1 : factsBytes(some)
      if (bytes >= ANSWER_BYTES_STOP) break
    }
    await frames.write(encodePathsAnswer({ paths }), limited)
  }
}

function isAscending(names: readonly string[]): boolean {
  return names.every((name, at) => at === 0 || (names[at - 1] ?? '') < name)
}

/**
 * Publishes files and folders: the bytes that the command line sends become a blob, and the blob an artifact. What is published is a
 * copy of what the file or folder was: changing it afterwards changes nothing that was announced.
 */
import {
  type ArtifactBody,
  type Digest,
  encodeManifest,
  fileCid,
  manifestCid,
  NAME_PATTERN,
} from '../../protocols/artifact/artifact.ts'
import { WireError } from '../../protocols/error.ts'
import { parseNar } from '../../protocols/nar/read.ts'
import type { BlobStore } from '../content/content.ts'
import { AgentError } from '../error.ts'

export type Upload = { type: 'file' | 'folder'; name: string; description: string }

/** A visitor that wants nothing but to know that the NAR is one. */
const NOTHING = { directory() {}, symlink() {}, file() {}, contents() {}, fileEnd() {} }

/** What to announce, and the blobs that it consists of. */
export type StoredUpload = { body: ArtifactBody; blobs: Digest[] }

/**
 * Stores the bytes, pinned for `pin` by the time they are there, and says what to announce. A folder comes as a NAR, which is parsed, so that
 * nobody announces what cannot be unpacked.
 *
 * @throws {AgentError} `usage` for bad names and malformed NARs, `limit` when there is no room.
 */
export async function storeUpload(
  upload: Upload,
  bytes: AsyncIterable<Uint8Array>,
  blobs: Pick<BlobStore, 'write' | 'open'>,
  pin: string,
  signal: AbortSignal,
): Promise<StoredUpload> {
  const { type, name, description } = upload
  checkName(name)
  const { digest, sizeBytes } = await blobs.write(undefined, bytes, signal, { pin })
  if (type === 'file') return { body: { type, cid: fileCid(digest), sizeBytes, description }, blobs: [digest] }
  await checkNar(blobs, digest, signal)
  const manifest = encodeManifest({ v: 1, type: 'folder', nar: Buffer.from(digest, 'hex'), sizeBytes })
  const stored = await blobs.write(undefined, [manifest], signal, { pin })
  return { body: { type, cid: manifestCid(manifest), sizeBytes, description }, blobs: [digest, stored.digest] }
}

/** @throws {AgentError} `usage` when others could not type, print or store the name. */
function checkName(name: string): void {
  if (NAME_PATTERN.test(name)) return
  throw new AgentError('usage', `${JSON.stringify(name)} cannot be the name of an artifact`, {
    next: 'Give --name one of letters, digits and + - . _ ? = that does not begin with a dot.',
  })
}

async function checkNar(blobs: Pick<BlobStore, 'open'>, digest: Digest, signal: AbortSignal): Promise<void> {
  const source = await blobs.open(digest)
  if (source === undefined) throw new AgentError('corrupt', `the blob ${digest} was lost while it was being published`)
  try {
    await parseNar(source.read(0, source.sizeBytes, signal), NOTHING)
  } catch (cause) {
    if (!(cause instanceof WireError)) throw cause
    throw new AgentError('usage', `the folder did not arrive as a NAR: ${cause.message}`, { cause })
  } finally {
    await source.close?.()
  }
}

/**
 * A blob that is checked while it is read from start to end: its last chunk is held back until the hash is known to be right, so bytes
 * that rotted on disk are never taken for the whole. What a holder wrote long ago was right then; this says whether it still is.
 */
import { createHash } from 'node:crypto'
import type { Digest } from '../../protocols/artifact/artifact.ts'
import type { BlobSource } from '../content/content.ts'
import { AgentError } from '../error.ts'

export function checkedSource(digest: Digest, source: BlobSource): BlobSource {
  return {
    sizeBytes: source.sizeBytes,
    read: (offset, length, signal) => {
      const isWhole = offset === 0 && length === source.sizeBytes
      return isWhole ? readChecked(digest, source, signal) : source.read(offset, length, signal)
    },
    close: async () => source.close?.(),
    reportCorrupt: () => source.reportCorrupt?.(),
  }
}

async function* readChecked(digest: Digest, source: BlobSource, signal: AbortSignal): AsyncGenerator<Uint8Array> {
  const hash = createHash('sha256')
  let held: Uint8Array | undefined
  for await (const chunk of source.read(0, source.sizeBytes, signal)) {
    if (held) yield held
    hash.update(chunk)
    held = chunk
  }
  if (hash.digest('hex') !== digest) {
    source.reportCorrupt?.()
    throw new AgentError('corrupt', `the bytes held of ${digest} are not those of this digest any more`)
  }
  if (held) yield held
}

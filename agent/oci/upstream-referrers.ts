/** Reads what a registry upstream answers about referrers: an index, of which only what is a descriptor of ours is taken. */
import { z } from 'zod'
import { type OciDigest, parseDigest } from './names.ts'
import type { Descriptor } from './repositories.ts'

/** One answer is a page; its bytes are bounded by who reads it. */
const DESCRIPTORS_MAX = 1_000

const descriptor = z.object({
  mediaType: z.string().max(255),
  digest: z.string().refine((text) => parseDigest(text) !== undefined),
  size: z.int().min(0),
  artifactType: z.string().max(255).optional(),
  annotations: z.record(z.string(), z.string()).optional(),
})

/** None for what is no index. */
export function referrersIn(bytes: Uint8Array | undefined): Descriptor[] {
  let all: unknown
  try {
    all = (JSON.parse(Buffer.from(bytes ?? []).toString('utf8')) as { manifests?: unknown } | null)?.manifests
  } catch {
    return []
  }
  if (!Array.isArray(all)) return []
  return all.slice(0, DESCRIPTORS_MAX).flatMap((one): Descriptor[] => {
    const { data } = descriptor.safeParse(one)
    if (data === undefined) return []
    const { mediaType, digest, size, artifactType, annotations } = data
    return [
      {
        mediaType,
        digest: digest as OciDigest,
        size,
        ...(artifactType !== undefined && { artifactType }),
        ...(annotations !== undefined && { annotations }),
      },
    ]
  })
}

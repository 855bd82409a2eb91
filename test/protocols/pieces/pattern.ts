/** The blobs of the vectors: byte i is (i + floor(i / 251)) mod 256, which no cut at a round number repeats. */
export function pattern(sizeBytes: number, seed = 0): Buffer {
  const bytes = Buffer.allocUnsafe(sizeBytes)
  for (let at = 0; at < sizeBytes; at++) bytes[at] = at + Math.floor(at / 251) + seed
  return bytes
}

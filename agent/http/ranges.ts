/** The Range header of a request, as RFC 9110 section 14 has it. */

export type ByteRange = { offset: number; length: number }

/**
 * One range of something that has so many bytes; undefined for none, and for what a server may ignore: several, or other units. One that
 * ends before it begins cannot be satisfied, either.
 */
export function rangeOf(header: string | undefined, sizeBytes: number): ByteRange | 'unsatisfiable' | undefined {
  const match = /^bytes=(\d*)-(\d*)$/.exec(header ?? '')
  const [, from = '', to = ''] = match ?? []
  if (!match || (from === '' && to === '')) return undefined
  if (from === '') {
    const length = Math.min(Number(to), sizeBytes)
    return length === 0 ? 'unsatisfiable' : { offset: sizeBytes - length, length }
  }
  const offset = Number(from)
  if (offset >= sizeBytes || (to !== '' && Number(to) < offset)) return 'unsatisfiable'
  const end = to === '' ? sizeBytes : Math.min(Number(to) + 1, sizeBytes)
  return { offset, length: end - offset }
}

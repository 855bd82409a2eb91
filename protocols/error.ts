/**
 * What can go wrong between two nodes, as a closed list of codes. A WireError is always the fault of bytes that came from
 * outside or of the connection: code that catches one closes the stream it came from and goes on.
 */

/** Closed list; each protocol's spec says which it uses. */
export type WireCode =
  /** Bytes that do not parse, or parse to something that the specification forbids. */
  | 'malformed'
  /** A declared or counted size over the limit in the specification. */
  | 'too-large'
  /** A signature that does not fit the key and the bytes. */
  | 'bad-signature'
  /** Content whose hash is not the one that was asked for. */
  | 'mismatch'
  /** The peer answered that it does not have what was asked for. */
  | 'absent'
  /** The peer answered, and said no. */
  | 'refused'
  /** The peer answered that others come first: it may be asked again. */
  | 'busy'
  /** The peer was slower than the limit. */
  | 'timeout'
  /** The stream ended before the message did. */
  | 'closed'

export class WireError extends Error {
  override readonly name = 'WireError'
  readonly code: WireCode

  constructor(code: WireCode, message: string, options?: ErrorOptions) {
    super(message, options)
    this.code = code
  }
}

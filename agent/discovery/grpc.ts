/**
 * The frame of gRPC over HTTP/2 (https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md), as far as a stream of xDS needs it: messages with
 * a length before them, uncompressed, and a status in the trailers.
 */
import { constants, type IncomingHttpHeaders, type ServerHttp2Stream } from 'node:http2'

/** Envoy's first request says which extensions it has: some 100 KB. */
const MESSAGE_BYTES_MAX = 1024 * 1024
const PREFIX_BYTES = 5
const CONTENT_TYPE = 'application/grpc'

/** https://grpc.github.io/grpc/core/md_doc_statuscodes.html */
export const STATUS = { ok: 0, invalidArgument: 3, resourceExhausted: 8, unimplemented: 12, unavailable: 14 } as const
export type Status = (typeof STATUS)[keyof typeof STATUS]

export class GrpcFault extends Error {
  override readonly name = 'GrpcFault'
  readonly status: Status

  constructor(status: Status, message: string) {
    super(message)
    this.status = status
  }
}

export function isGrpc(headers: IncomingHttpHeaders): boolean {
  return headers[':method'] === 'POST' && (headers['content-type'] ?? '').startsWith(CONTENT_TYPE)
}

/** Says that messages will come; `end` says how it ended. */
export function begin(stream: ServerHttp2Stream): void {
  stream.respond({ ':status': 200, 'content-type': `${CONTENT_TYPE}+proto` }, { waitForTrailers: true })
}

/** Ends a stream on which `begin` was called. */
export function end(stream: ServerHttp2Stream, status: Status, message = ''): void {
  if (stream.destroyed || stream.writableEnded) return
  const trailers = {
    'grpc-status': String(status),
    ...(message !== '' && { 'grpc-message': encodeURIComponent(message) }),
  }
  stream.once('wantTrailers', () => stream.sendTrailers(trailers))
  stream.end()
}

/** Ends a stream at once, without messages. */
export function refuse(stream: ServerHttp2Stream, status: Status, message: string): void {
  const said = { 'grpc-status': String(status), 'grpc-message': encodeURIComponent(message) }
  stream.respond({ ':status': 200, 'content-type': CONTENT_TYPE, ...said }, { endStream: true })
  stream.close(constants.NGHTTP2_NO_ERROR)
}

export function frame(message: Uint8Array): Uint8Array {
  const prefix = Buffer.alloc(PREFIX_BYTES)
  prefix.writeUInt32BE(message.byteLength, 1)
  return Buffer.concat([prefix, message])
}

/**
 * The messages of a stream, as they come.
 *
 * @throws {GrpcFault} for what is too large, compressed, or ends in the middle.
 */
export async function* messages(stream: AsyncIterable<Uint8Array>): AsyncGenerator<Uint8Array> {
  let chunks: Uint8Array[] = []
  let size = 0
  for await (const chunk of stream) {
    chunks.push(chunk)
    size += chunk.byteLength
    while (size >= PREFIX_BYTES) {
      const bytes = Buffer.concat(chunks)
      chunks = [bytes]
      const length = bytes.readUInt32BE(1)
      if (bytes[0] !== 0) throw new GrpcFault(STATUS.unimplemented, 'messages are not to be compressed')
      if (length > MESSAGE_BYTES_MAX)
        throw new GrpcFault(STATUS.resourceExhausted, `a message has at most ${MESSAGE_BYTES_MAX} bytes`)
      if (size < PREFIX_BYTES + length) break
      yield bytes.subarray(PREFIX_BYTES, PREFIX_BYTES + length)
      chunks = [bytes.subarray(PREFIX_BYTES + length)]
      size -= PREFIX_BYTES + length
    }
  }
  if (size > 0) throw new GrpcFault(STATUS.invalidArgument, 'a message ended in the middle')
}

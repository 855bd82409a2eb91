/**
 * Sends bytes that are read from a file as the body of an answer: through two buffers by turns, one filled while the other goes out. A
 * stream of chunks would cost three times the CPU, most of it for memory that is new each time.
 */
import type { FastifyReply } from 'fastify'
import { giveBack } from '../give-back.ts'

/** Small enough that both stay in the cache of a core. */
const BUFFER_BYTES = 256 * 1024

export type Readable = { readInto(buffer: Uint8Array, offset: number): Promise<void> }

/**
 * Resolves when the last byte has gone to the system. `signal` is to fire when the requester goes away. The answer's status and headers,
 * with the length, are set already.
 *
 * @throws what reading throws, and the signal's reason; the connection is cut then, so that nobody takes a part for the whole.
 */
export async function sendBytes(
  reply: FastifyReply,
  source: Readable,
  { offset, length }: { offset: number; length: number },
  signal: AbortSignal,
): Promise<void> {
  reply.hijack()
  const { raw } = reply
  const isGone = Promise.withResolvers<never>()
  isGone.promise.catch(() => {})
  const onAbort = () => isGone.reject(signal.reason as Error)
  signal.addEventListener('abort', onAbort, { once: true })
  try {
    signal.throwIfAborted()
    raw.writeHead(reply.statusCode, reply.getHeaders() as Record<string, string | number>)
    const end = offset + length
    const buffers = [length, length - BUFFER_BYTES].map((bytes) =>
      Buffer.allocUnsafeSlow(Math.min(Math.max(0, bytes), BUFFER_BYTES)),
    )
    const filled = async (turn: number) => {
      const from = offset + turn * BUFFER_BYTES
      const buffer = (buffers[turn % 2] as Buffer).subarray(0, Math.max(0, end - from))
      if (buffer.byteLength > 0) await source.readInto(buffer, from)
      return buffer
    }
    for (let turn = 0, next = filled(0); ; turn++) {
      const buffer = await next
      if (buffer.byteLength === 0) break
      next = filled(turn + 1)
      next.catch(() => {})
      await Promise.race([isGone.promise, written(raw, buffer)])
    }
    raw.end()
    for (const buffer of buffers) giveBack(buffer)
  } catch (error) {
    raw.destroy()
    throw error
  } finally {
    signal.removeEventListener('abort', onAbort)
  }
}

function written(raw: FastifyReply['raw'], bytes: Uint8Array): Promise<void> {
  return new Promise((resolve, reject) => raw.write(bytes, (error) => (error ? reject(error) : resolve())))
}

/**
 * A connection to an application, whose bytes are read into the same memory again and again. By itself Node makes a buffer for each 64 KiB, and what is
 * left of one behind a full message of the mesh is copied to the next; here a read is up to four full messages, which are sealed where they lie.
 */
import { connect, type OnReadOpts, type Socket } from 'node:net'
import type { Writable } from 'node:stream'
import { MESSAGE_BYTES } from './tunnel-stream.ts'

/** Of a connection that says little at a time, as most that are open do. */
const SMALL_BYTES = 4 * 1024
/** Of one that has filled that. */
const LARGE_BYTES = 4 * MESSAGE_BYTES
/** Kept for the next ones. */
const SPARE_MAX = 8

const spare: Uint8Array[] = []

/** A socket that reads nothing until it is told where to. */
export type SteadySocket = {
  socket: Socket
  /**
   * Joins what is read, and its end, to a tunnel. To be called once. What the tunnel takes at once it must not look at again.
   */
  readInto: (tunnel: Writable) => void
}

/** Of the next read, after one of so many bytes. */
function bufferBytes(count: number): number {
  return count < SMALL_BYTES ? SMALL_BYTES : LARGE_BYTES
}

function bufferAfter(count: number): Uint8Array {
  const bytes = bufferBytes(count)
  return (bytes === LARGE_BYTES ? spare.pop() : undefined) ?? Buffer.allocUnsafeSlow(bytes)
}

/** Begins to connect. */
export function steadySocket({ host, port }: { host: string; port: number }): SteadySocket {
  let buffer: Uint8Array = Buffer.allocUnsafeSlow(SMALL_BYTES)
  let target: Writable | undefined
  let isWaiting = false
  const onread: OnReadOpts = {
    buffer: () => buffer,
    callback: (count) => {
      if (target === undefined || target.destroyed) return false
      target.write(buffer.subarray(0, count), () => {
        if (!isWaiting) return
        isWaiting = false
        socket.resume()
      })
      isWaiting = target.writableLength > 0
      // What was not taken at once is in queues of the mesh, of which nobody says when they are done with it: so the buffer is theirs.
      if (isWaiting) buffer = bufferAfter(count)
      else if (buffer.byteLength !== bufferBytes(count)) {
        if (buffer.byteLength === LARGE_BYTES && spare.length < SPARE_MAX) spare.push(buffer)
        buffer = bufferAfter(count)
      }
      return !isWaiting
    },
  }
  const socket = connect({ host, port, allowHalfOpen: true, noDelay: true, onread })
  // Reading would begin with the connection.
  socket.pause()
  return {
    socket,
    readInto: (tunnel) => {
      target = tunnel
      socket.once('end', () => tunnel.end())
      socket.resume()
    },
  }
}

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
   * Joins what is read, and its end, to a tunnel. To be called once. What the tunnel is done with it must not look at again.
   */
  readInto: (tunnel: Writable) => void
}

/** Begins to connect. */
export function steadySocket({ host, port }: { host: string; port: number }): SteadySocket {
  const small: Uint8Array = Buffer.allocUnsafeSlow(SMALL_BYTES)
  let buffer = small
  let target: Writable | undefined
  /** The tunnel has not sealed all of the buffer yet. */
  let isWaiting = false
  const onread: OnReadOpts = {
    buffer: () => buffer,
    callback: (count) => {
      if (target === undefined || target.destroyed) return false
      target.write(buffer.subarray(0, count), () => {
        if (!isWaiting || target?.writableLength !== 0) return
        isWaiting = false
        socket.resume()
      })
      isWaiting = target.writableLength > 0
      if (buffer === small && count === SMALL_BYTES) buffer = spare.pop() ?? Buffer.allocUnsafeSlow(LARGE_BYTES)
      else if (!isWaiting && count <= SMALL_BYTES) putBack()
      return !isWaiting
    },
  }
  const putBack = () => {
    if (buffer !== small && spare.length < SPARE_MAX) spare.push(buffer)
    buffer = small
  }
  const socket = connect({ host, port, allowHalfOpen: true, noDelay: true, onread })
  // Reading would begin with the connection.
  socket.pause()
  // What the tunnel still has is not for others.
  socket.once('close', () => !isWaiting && putBack())
  return {
    socket,
    readInto: (tunnel) => {
      target = tunnel
      socket.once('end', () => tunnel.end())
      socket.resume()
    },
  }
}

/**
 * Services of this node itself, for its own users: the application's connection as a flow, and datagrams between two ends in memory.
 */
import type { Socket } from 'node:net'
import type { DatagramTunnel } from './dialer.ts'
import type { Flow } from './flows.ts'
import type { Instance } from './services.ts'

/** What Flows counts. */
export function hereStream(socket: Socket): Flow['stream'] {
  const startMs = performance.now()
  return {
    get sentBytes() {
      return socket.bytesWritten
    },
    get receivedBytes() {
      return socket.bytesRead
    },
    get heldBytes() {
      return socket.readableLength + socket.writableLength
    },
    // A connection within this machine costs nothing: it may be idle for as long as it likes.
    get activeMs() {
      return Math.max(performance.now(), startMs)
    },
    get destroyed() {
      return socket.destroyed
    },
    destroy: (error) => socket.destroy(error),
    once: (event, listener) => socket.once(event, listener),
  }
}

type End = Pick<DatagramTunnel, 'send' | 'onDatagram' | 'onClose' | 'close'>

/** Two ends: what one sends, the other is told. */
export function hereDatagrams(instance: Instance): { near: DatagramTunnel; far: End } {
  const closed = new Set<() => void>()
  let isOver = false
  const close = () => {
    if (isOver) return
    isOver = true
    for (const listener of closed) listener()
  }
  const heard: { near?: (bytes: Uint8Array) => void; far?: (bytes: Uint8Array) => void } = {}
  const end = (own: 'near' | 'far', other: 'near' | 'far'): End => ({
    send: (bytes) => heard[other]?.(bytes),
    onDatagram: (listener) => {
      heard[own] = listener
    },
    onClose: (listener) => void closed.add(listener),
    close,
  })
  return { near: { instance, path: 'local', ...end('near', 'far') }, far: end('far', 'near') }
}

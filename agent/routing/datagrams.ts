/**
 * Datagrams through a tunnel: each a frame on its stream. What cannot be sent in time is dropped, as a network does, and counted nowhere.
 * Wire format: protocols/tunnel/spec.md.
 */
import type { Socket } from 'node:dgram'
import { varint } from 'multiformats'
import { encodeFrame } from '../../protocols/frame.ts'
import { DATAGRAM_BYTES_MAX } from '../../protocols/tunnel/tunnel.ts'
import type { DatagramTunnel } from './dialer.ts'
import type { Instance } from './services.ts'
import type { TunnelStream } from './tunnel-stream.ts'

/** What waits to be sent, in each direction: some 40 ms of a fast link. Datagrams that would wait longer are better dropped. */
const QUEUE_BYTES_MAX = 512 * 1024
/** A varint of a length up to 65,507. */
const PREFIX_BYTES_MAX = 3
const NOTHING = Buffer.alloc(0)

export class Datagrams implements DatagramTunnel {
  readonly instance: Instance
  readonly path: string
  readonly #stream: TunnelStream
  #listener: ((bytes: Uint8Array) => void) | undefined
  #rest: Uint8Array = NOTHING

  /** Takes the stream over, behind its answer. */
  constructor(stream: TunnelStream, told: { instance: Instance; path: string }) {
    this.instance = told.instance
    this.path = told.path
    this.#stream = stream
    stream.on('data', (chunk: Uint8Array) => this.#arrived(chunk))
    // Half a flow of datagrams is none.
    stream.once('end', () => stream.destroy())
  }

  send(bytes: Uint8Array): void {
    const isTooMuch = this.#stream.writableLength > QUEUE_BYTES_MAX || bytes.byteLength > DATAGRAM_BYTES_MAX
    if (!isTooMuch && this.#stream.writable) this.#stream.write(encodeFrame(bytes))
  }

  onDatagram(listener: (bytes: Uint8Array) => void): void {
    this.#listener = listener
  }

  onClose(listener: () => void): void {
    this.#stream.once('close', listener)
    if (this.#stream.closed) listener()
  }

  close(): void {
    if (!this.#stream.destroyed) this.#stream.end(() => this.#stream.destroy())
  }

  #arrived(chunk: Uint8Array): void {
    this.#rest = this.#rest.byteLength === 0 ? chunk : Buffer.concat([this.#rest, chunk])
    try {
      for (;;) {
        const frame = this.#take()
        if (frame === undefined) return
        this.#listener?.(frame)
      }
    } catch (error) {
      this.#stream.destroy(error as Error)
    }
  }

  /** The next whole one. @throws {RangeError} for what is no frame */
  #take(): Uint8Array | undefined {
    const last = this.#rest.subarray(0, PREFIX_BYTES_MAX).findIndex((byte) => byte < 0x80)
    if (last < 0) {
      if (this.#rest.byteLength < PREFIX_BYTES_MAX) return undefined
      throw new RangeError('a datagram of more than 65,507 bytes')
    }
    const [length] = varint.decode(this.#rest.subarray(0, last + 1))
    if (length > DATAGRAM_BYTES_MAX) throw new RangeError(`a datagram of ${length} bytes`)
    const end = last + 1 + length
    if (this.#rest.byteLength < end) return undefined
    const frame = this.#rest.subarray(last + 1, end)
    this.#rest = this.#rest.subarray(end)
    return frame
  }
}

/** Joins a connected socket of datagrams and a tunnel until either is over. */
export function joinDatagrams(
  socket: Socket,
  tunnel: Pick<DatagramTunnel, 'send' | 'onDatagram' | 'onClose' | 'close'>,
): void {
  socket.on('message', (bytes) => tunnel.send(bytes))
  // A port where nobody listens answers with an error: a datagram more that is lost.
  socket.on('error', () => undefined)
  tunnel.onDatagram((bytes) => socket.send(bytes, () => undefined))
  socket.once('close', () => tunnel.close())
  tunnel.onClose(() => {
    try {
      socket.close()
    } catch {
      // Closed already, which is what closed the tunnel.
    }
  })
}

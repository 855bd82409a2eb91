/**
 * Makes what passes a connection cheap. By themselves libp2p's modules write a message of Noise to the socket in the parts that they have it in: four
 * writes for 64 KiB, three of them of a few bytes and with a packet each; copy what is to be opened once more than is needed; tell each stream of a
 * connection after each write that there is room; and tell the sender after each 64 KiB that they were read. Here a message is one write, and the
 * others are told when it matters to them. The bytes on the wire are the same, but for fewer window updates.
 *
 * It replaces methods of three objects that libp2p made (EncryptedMessageStream of @chainsafe/libp2p-noise 17, the connection of @libp2p/tcp 11,
 * YamuxStream of @chainsafe/libp2p-yamux 8), and leaves alone whatever does not look like them.
 */
import type { Socket } from 'node:net'
import type { yamux } from '@chainsafe/libp2p-yamux'
import type { ConnectionEncrypter, MessageStream, SecureConnectionOptions } from '@libp2p/interface'
import { giveBack } from '../give-back.ts'

/** Handed to the socket and not taken over by the kernel: then whoever sends waits. A few messages, so that the kernel does not wait for us. */
const UNSENT_BYTES_MAX = 256 * 1024
/** Of a window: less is not worth a message of its own. The sender still has the rest of it ... */
const UPDATE_SHARE = 1 / 4
/** ... and hears after so long that what he sends arrives, however slowly: liveness.ts waits for no more than a second. */
const UPDATE_MS_MAX = 500
/**
 * A window grows as long as its share is used up within four round trips. On a LAN these are measured as none; but on a busy machine the event loops of
 * both ends take their turns, and one window is sent and told of in each: with less than this a stream carried 20 MB/s there.
 */
const ROUND_TRIP_MS_MIN = 20
/** Of what was sent: less is soon collected. */
const GIVEN_BACK_BYTES_MIN = 16 * 1024
/** StreamState.Established: in others a window update says something more, or nothing is to be said. */
const ESTABLISHED = 3

type Bytes = Parameters<MessageStream['send']>[0]
/** Private in their types. */
type Secured = { decrypt(sealed: Bytes): Bytes; handshake?: { decrypt(sealed: Bytes): Bytes } }
type Raw = {
  socket?: Socket
  writableNeedsDrain: boolean
  sendData(data: Iterable<Uint8Array> & { byteLength: number }): { sentBytes: number; canSendMore: boolean }
  safeDispatchEvent(name: 'drain'): void
}
type Windowed = {
  state: number
  recvWindow: number
  recvWindowCapacity: number
  /** When the last update was sent, in Unix time. */
  epochStart: number
  sendWindowUpdate(): void
}
type Making = { _newStream?(...args: unknown[]): Windowed; getRTT(): number }

type MakeEncrypter<Components> = (components: Components) => ConnectionEncrypter
type MakeYamux = ReturnType<typeof yamux>

/** The same encrypter, whose connections are quick. */
export function quick<Components>(make: MakeEncrypter<Components>): MakeEncrypter<Components> {
  return (components) => {
    const inner = make(components)
    const quicken = <T extends { connection: MessageStream }>(raw: MessageStream, secured: T): T => {
      openAtOnce(secured.connection)
      writeAtOnce(raw)
      return secured
    }
    return {
      protocol: inner.protocol,
      secureInbound: async (raw: MessageStream, options?: SecureConnectionOptions) =>
        quicken(raw, await inner.secureInbound(raw, options)),
      secureOutbound: async (raw: MessageStream, options?: SecureConnectionOptions) =>
        quicken(raw, await inner.secureOutbound(raw, options)),
    }
  }
}

/** The same muxer, whose streams say less often how much was read. */
export function thrifty(make: MakeYamux): MakeYamux {
  return () => {
    const factory = make()
    const create = factory.createStreamMuxer.bind(factory)
    factory.createStreamMuxer = (channel) => {
      const muxer = create(channel)
      const making = muxer as unknown as Making
      const makeStream = making._newStream?.bind(muxer)
      const measured = making.getRTT.bind(muxer)
      making.getRTT = () => (measured() < 0 ? measured() : Math.max(measured(), ROUND_TRIP_MS_MIN))
      if (makeStream !== undefined) making._newStream = (...args) => saveUpdates(makeStream(...args))
      return muxer
    }
    return factory
  }
}

/** The library first copies what is sealed to a place where it might be opened, which nobody uses. */
function openAtOnce(connection: MessageStream): void {
  const secured = connection as unknown as Secured
  const { handshake } = secured
  if (handshake !== undefined && typeof secured.decrypt === 'function')
    secured.decrypt = (sealed) => handshake.decrypt(sealed)
}

function writeAtOnce(connection: MessageStream): void {
  const raw = connection as unknown as Raw
  const { socket } = raw
  if (socket === undefined || typeof raw.sendData !== 'function') return
  raw.sendData = (data) => {
    socket.cork()
    for (const part of data) {
      // What Noise sealed is in memory of its own, and on its way to nobody else.
      if (part.byteLength >= GIVEN_BACK_BYTES_MIN) socket.write(part, () => giveBack(part))
      else socket.write(part)
    }
    socket.uncork()
    return { sentBytes: data.byteLength, canSendMore: socket.writableLength < UNSENT_BYTES_MAX }
  }
  socket.removeAllListeners('drain')
  socket.on('drain', () => {
    if (raw.writableNeedsDrain) raw.safeDispatchEvent('drain')
  })
}

function saveUpdates(stream: Windowed): Windowed {
  const update = stream.sendWindowUpdate.bind(stream)
  stream.sendWindowUpdate = () => {
    const { state, recvWindow, recvWindowCapacity, epochStart } = stream
    const isWorth = recvWindow - recvWindowCapacity >= recvWindow * UPDATE_SHARE
    if (isWorth || state !== ESTABLISHED || Date.now() - epochStart >= UPDATE_MS_MAX) update()
  }
  return stream
}

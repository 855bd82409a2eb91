/**
 * Who sits in between: a relay of bytes that records what it passes on, and plays it again; and one that speaks libp2p with a key of its own
 * to both sides, and passes on what they say within its two secure channels.
 */
import { once } from 'node:events'
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net'
import type { MessageStream } from '@libp2p/interface'
import { multiaddr } from '@multiformats/multiaddr'
import { Prelude } from '../../agent/mesh/prelude.ts'
import { WireError } from '../../protocols/error.ts'
import type { Frames } from '../../protocols/frame.ts'
import { greet } from '../../protocols/hello/hello.ts'
import { type Attacker, keyOf } from './attacker.ts'
import { BareChannels } from './stock-peer.ts'

/** An agent gives a connection that says nothing sensible five seconds. */
const REPLAY_MS_MAX = 15_000
const HELLO_MS_MAX = 10_000

type Place = { host: string; port: number }

/** On the way between somebody and an agent. */
export class ByteRelay implements Disposable {
  /** What each connection said to the agent, in order. */
  readonly said: Buffer[] = []
  /** What the agent answered, of all connections. */
  answered = Buffer.alloc(0)
  readonly #server: Server
  readonly #target: Place
  readonly #peerId: string
  readonly #sockets = new Set<Socket>()

  private constructor(server: Server, target: Place, peerId: string) {
    this.#server = server
    this.#target = target
    this.#peerId = peerId
  }

  static async start(address: string): Promise<ByteRelay> {
    const [, host = '', port = '', peerId = ''] = /^\/ip4\/([^/]+)\/tcp\/(\d+)\/p2p\/(\w+)$/.exec(address) ?? []
    const server = createServer()
    const relay = new ByteRelay(server, { host, port: Number(port) }, peerId)
    server.on('connection', (near) => relay.#passOn(near))
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    return relay
  }

  /** Of the agent, by way of this relay. */
  get address(): string {
    return multiaddr(
      `/ip4/127.0.0.1/tcp/${(this.#server.address() as AddressInfo).port}/p2p/${this.#peerId}`,
    ).toString()
  }

  /** Says all of what a connection said to the agent once more, and gives back what the agent said to that. */
  async replay(nth: number): Promise<Buffer> {
    const socket = connect(this.#target)
    const answers: Buffer[] = []
    // A reset is an end like any other.
    const closed = new Promise((resolve) => socket.on('error', () => undefined).once('close', resolve))
    socket.on('data', (bytes: Buffer) => answers.push(bytes)).setTimeout(REPLAY_MS_MAX, () => socket.destroy())
    socket.write(this.said[nth] ?? Buffer.alloc(0))
    await closed
    return Buffer.concat(answers)
  }

  [Symbol.dispose](): void {
    this.#server.close()
    for (const socket of this.#sockets) socket.destroy()
  }

  #passOn(near: Socket): void {
    const far = connect(this.#target)
    const nth = this.said.push(Buffer.alloc(0)) - 1
    near.on('data', (bytes: Buffer) => {
      this.said[nth] = Buffer.concat([this.said[nth] ?? Buffer.alloc(0), bytes])
    })
    far.on('data', (bytes: Buffer) => {
      this.answered = Buffer.concat([this.answered, bytes])
    })
    for (const [from, to] of [
      [near, far],
      [far, near],
    ] as const) {
      this.#sockets.add(from)
      from.pipe(to)
      from.on('error', () => to.destroy()).on('close', () => to.destroy())
    }
  }
}

/** What a member says in its hello on a channel that it has opened, frame by frame: it may give that to anybody. */
export async function recordHello(member: Attacker, target: string): Promise<Uint8Array[]> {
  await using channels = await BareChannels.start(member.key)
  const channel = await channels.open(target)
  const frames = new Prelude(channel)
  const said: Uint8Array[] = []
  const write = (payload: Uint8Array, signal: AbortSignal) => {
    said.push(payload)
    return frames.write(payload, signal)
  }
  const read = (signal: AbortSignal, bytesMax?: number) => frames.read(signal, bytesMax)
  const signal = AbortSignal.timeout(HELLO_MS_MAX)
  const { afterwards } = await greet({ party: member.party, peer: keyOf(target), frames: { read, write }, signal })
  await afterwards
  channel.abort(new Error('that is all'))
  return said
}

/** Says those frames to an agent as somebody else, one after each answer, and gives back the answers. */
export async function replayHello(
  said: readonly Uint8Array[],
  frames: Pick<Frames, 'read' | 'write'>,
): Promise<Uint8Array[]> {
  const answers: Uint8Array[] = []
  const signal = AbortSignal.timeout(HELLO_MS_MAX)
  try {
    for (const one of said) {
      await frames.write(one, signal)
      const answer = await frames.read(signal)
      if (answer === undefined) break
      answers.push(answer)
    }
  } catch (error) {
    if (!(error instanceof WireError && error.code === 'closed')) throw error
  }
  return answers
}

/** Has a secure channel with each side, and passes on all that comes out of either. */
export class ManInTheMiddle implements AsyncDisposable {
  /** What was read on the way to the agent, and back. */
  readonly toTarget: Uint8Array[]
  readonly fromTarget: Uint8Array[]
  readonly #channels: BareChannels

  private constructor(channels: BareChannels, read: Pick<ManInTheMiddle, 'toTarget' | 'fromTarget'>) {
    this.#channels = channels
    this.toTarget = read.toTarget
    this.fromTarget = read.fromTarget
  }

  static async start(target: string): Promise<ManInTheMiddle> {
    const read: Pick<ManInTheMiddle, 'toTarget' | 'fromTarget'> = { toTarget: [], fromTarget: [] }
    const outgoing = await BareChannels.start()
    const incoming = await BareChannels.start(outgoing.key, (near) => {
      near.pause()
      outgoing.open(target).then(
        (far) => {
          pass(near, far, read.toTarget)
          pass(far, near, read.fromTarget)
          near.resume()
        },
        (error: Error) => near.abort(error),
      )
    })
    const stop = incoming[Symbol.asyncDispose].bind(incoming)
    incoming[Symbol.asyncDispose] = async () => {
      await outgoing[Symbol.asyncDispose]()
      await stop()
    }
    return new ManInTheMiddle(incoming, read)
  }

  /** Where victims find it, under its own peer id. */
  get address(): string {
    return this.#channels.address
  }

  get peerId(): string {
    return this.#channels.key.peerId
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#channels[Symbol.asyncDispose]()
  }
}

function pass(from: MessageStream, to: MessageStream, read: Uint8Array[]): void {
  from.addEventListener('message', ({ data }) => {
    const bytes = data.subarray()
    read.push(bytes)
    if (to.status === 'open') to.send(bytes)
  })
  from.addEventListener('close', () => to.abort(new Error('the other side closed')))
}

/**
 * Asks a router for ports by NAT-PMP (RFC 6886): datagrams of a few bytes, to the router alone and from it alone. Its successor PCP answers
 * these, too. Nothing of it is authenticated: what a router says is believed as far as mesh/port-mapping.ts lets it.
 */
import { createSocket, type Socket } from 'node:dgram'
import { WireError } from '../../protocols/error.ts'

const PORT = 5351
/** RFC 6886, section 3.1, begins with 250 ms and doubles nine times; a router of today answers the first. */
const TRIES_MS = [250, 500, 1_000]
const ANSWER_BYTES_MAX = 1_100

const OP_ADDRESS = 0
const OP = { udp: 1, tcp: 2 } as const
/** Added to the operation in an answer. */
const ANSWERED = 128
const RESULTS: Readonly<Record<number, string>> = {
  1: 'it speaks another version',
  2: 'it does not allow it',
  3: 'it has no connection itself',
  4: 'it has no room for more',
  5: 'it does not know this',
}

export type Transport = keyof typeof OP
type Wish = { transport: Transport; port: number; externalPort: number; leaseSeconds: number }
type Granted = { externalPort: number; leaseSeconds: number }

export class NatPmp implements Disposable {
  readonly #socket: Socket
  #waiting: ((bytes: Buffer) => void) | undefined

  private constructor(socket: Socket) {
    this.#socket = socket
    socket.on('message', (bytes) => this.#waiting?.(bytes))
    // Such as a refused port: the wait for an answer ends by itself.
    socket.on('error', () => undefined)
  }

  /** Sends nothing yet. Only what comes from there is heard: the kernel sees to it. */
  static async to(gateway: string, port = PORT): Promise<NatPmp> {
    const socket = createSocket('udp4')
    await new Promise<void>((resolve, reject) => {
      socket.once('error', reject)
      socket.connect(port, gateway, resolve)
    })
    socket.removeAllListeners('error')
    return new NatPmp(socket)
  }

  /** The router's own address outside. @throws {WireError} `timeout`, `refused`, `malformed` */
  async externalAddress(signal: AbortSignal): Promise<string> {
    return readExternalAddress(await this.#ask(Buffer.from([0, OP_ADDRESS]), OP_ADDRESS, signal))
  }

  /** A lease of 0 gives the port back. @throws {WireError} `timeout`, `refused`, `malformed` */
  async map({ transport, port, externalPort, leaseSeconds }: Wish, signal: AbortSignal): Promise<Granted> {
    const request = Buffer.alloc(12)
    request[1] = OP[transport]
    request.writeUInt16BE(port, 4)
    request.writeUInt16BE(externalPort, 6)
    request.writeUInt32BE(leaseSeconds, 8)
    return readMapping(await this.#ask(request, OP[transport], signal), port)
  }

  [Symbol.dispose](): void {
    this.#socket.close()
  }

  /** One question at a time. */
  async #ask(request: Buffer, op: number, signal: AbortSignal): Promise<Buffer> {
    const heard = Promise.withResolvers<Buffer>()
    this.#waiting = (bytes) => isAnswerTo(op, bytes) && heard.resolve(bytes)
    try {
      for (const ms of TRIES_MS) {
        signal.throwIfAborted()
        this.#socket.send(request, () => undefined)
        const answer = await within(heard.promise, ms, signal)
        if (answer !== undefined) return answer
      }
      throw new WireError('timeout', 'the router does not answer by NAT-PMP')
    } finally {
      this.#waiting = undefined
    }
  }
}

/** @throws {WireError} `malformed`, `refused` */
export function readExternalAddress(bytes: Uint8Array): string {
  const answer = checked(bytes, 12)
  return [...answer.subarray(8, 12)].join('.')
}

/** @throws {WireError} `malformed`, `refused` */
export function readMapping(bytes: Uint8Array, port: number): Granted {
  const answer = checked(bytes, 16)
  if (answer.readUInt16BE(8) !== port) throw new WireError('malformed', 'the router answers for another port')
  return { externalPort: answer.readUInt16BE(10), leaseSeconds: answer.readUInt32BE(12) }
}

function isAnswerTo(op: number, bytes: Uint8Array): boolean {
  return bytes.byteLength <= ANSWER_BYTES_MAX && bytes[1] === op + ANSWERED
}

function checked(bytes: Uint8Array, least: number): Buffer {
  const answer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength)
  if (answer.byteLength < 4) throw new WireError('malformed', 'the router answers with too little')
  const result = answer.readUInt16BE(2)
  if (result !== 0) throw new WireError('refused', `the router refuses: ${RESULTS[result] ?? `error ${result}`}`)
  if (answer[0] !== 0 || answer.byteLength < least)
    throw new WireError('malformed', 'the router answers with too little, or in another version')
  return answer
}

async function within(answer: Promise<Buffer>, ms: number, signal: AbortSignal): Promise<Buffer | undefined> {
  const over = Promise.withResolvers<undefined>()
  const end = () => over.resolve(undefined)
  const timer = setTimeout(end, ms)
  signal.addEventListener('abort', end, { once: true })
  try {
    return await Promise.race([answer, over.promise])
  } finally {
    clearTimeout(timer)
    signal.removeEventListener('abort', end)
  }
}

/**
 * One round trip less for each connection that this node dials. By itself libp2p asks the listener by multistream-select whether it speaks
 * Noise, waits for the answer, and then begins. But nothing else is spoken here: this dialler asks and begins at once, and holds the
 * answer against what it must be when it comes, in front of Noise's own. The bytes on the wire are the same, and any listener that reads what
 * comes in order can do it (go-libp2p and rust-libp2p call it lazy, too).
 *
 * Two places of libp2p's configuration, both needed: the protector, which is the first to have a raw connection, lets the dialler's own
 * multistream-select read the answer that there can be; the encrypter takes the listener's off the connection before Noise sees it.
 */
import type {
  ConnectionEncrypter,
  ConnectionProtector,
  MessageStream,
  SecureConnectionOptions,
} from '@libp2p/interface'
import { WireError } from '../../protocols/error.ts'
import { encodeFrame } from '../../protocols/frame.ts'
import { Prelude } from './prelude.ts'

/** What the listener answers, and what the dialler proposed. */
const WORDS = ['/multistream/1.0.0\n', '/noise\n'].map((word) => Buffer.from(word))
/** The longest name that libp2p reads. Whatever else the listener says is no answer. */
const WORD_BYTES_MAX = 1_024

type MakeEncrypter<Components> = (components: Components) => ConnectionEncrypter

/** What Noise is to be wrapped in, and what belongs beside it. */
export function eager<Components>(makeNoise: MakeEncrypter<Components>): {
  connectionEncrypter: MakeEncrypter<Components>
  connectionProtector: () => ConnectionProtector
} {
  /** Connections whose answer has not been read. */
  const presumed = new WeakSet<MessageStream>()
  const protect = async (raw: MessageStream) => {
    if (raw.direction === 'outbound') {
      raw.unshift(Buffer.concat(WORDS.map(encodeFrame)))
      presumed.add(raw)
    }
    return raw
  }
  return {
    connectionProtector: () => ({ protect }),
    connectionEncrypter: (components) => {
      const noise = makeNoise(components)
      return {
        protocol: noise.protocol,
        secureInbound: (raw: MessageStream, options?: SecureConnectionOptions) => noise.secureInbound(raw, options),
        secureOutbound: (raw: MessageStream, options?: SecureConnectionOptions) => {
          if (presumed.delete(raw)) void takeAnswer(raw, options?.signal)
          return noise.secureOutbound(raw, options)
        },
      }
    },
  }
}

/** Reads the listener's answer, and lets what follows through. Nobody waits for this: if it is another, the connection ends. */
async function takeAnswer(raw: MessageStream, signal: AbortSignal = NEVER): Promise<void> {
  const prelude = new Prelude(raw)
  try {
    for (const expected of WORDS) {
      const word = await prelude.read(signal, WORD_BYTES_MAX)
      if (Buffer.compare(word, expected) !== 0) throw new WireError('refused', 'the peer does not speak Noise')
    }
    prelude.release()
  } catch (error) {
    raw.abort(error instanceof Error ? error : new Error(String(error)))
    prelude.release()
  }
}

const NEVER = new AbortController().signal

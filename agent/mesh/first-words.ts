/**
 * The hello on a new secure channel, before its muxer: in time or not at all, and nobody else hears or says anything meanwhile. What the
 * hello is, and what comes of it, is the gate's business.
 */
import { setTimeout as delay } from 'node:timers/promises'
import type { Connection, MessageStream, MultiaddrConnection, Stream } from '@libp2p/interface'
import { WireError } from '../../protocols/error.ts'
import type { Admission, Greeting } from '../../protocols/hello/hello.ts'
import { Prelude } from './prelude.ts'

/** Two round trips and some milliseconds of work. Who is slower than this holds a place that others wait for. */
export const HELLO_MS_MAX = 3_000
/** How long a refused peer that knows a network has to read why, before the connection is cut. */
const PARTING_MS_MAX = 250

type Spoken = {
  channel: MessageStream
  direction: Connection['direction']
  /** Of the connection that is being made. */
  outer: AbortSignal | undefined
  greet(frames: Prelude, signal: AbortSignal): Promise<Greeting>
  answer(frames: Prelude, signal: AbortSignal): Promise<Admission>
}

/** Never rejects: the reason for which there will be no connection is an answer, too. */
export async function firstWords(spoken: Spoken): Promise<{ greeting: Greeting | Admission } | { cause: unknown }> {
  const { channel, direction, outer } = spoken
  const within = new AbortController()
  const timer = setTimeout(() => within.abort(new WireError('timeout', 'no hello in time')), HELLO_MS_MAX)
  const onAbort = () => within.abort(outer?.reason)
  outer?.addEventListener('abort', onAbort, { once: true })
  const onClose = () => within.abort(new WireError('closed', 'the connection ended during the hello'))
  channel.addEventListener('close', onClose, { once: true })
  const prelude = new Prelude(channel)
  const over = () => {
    clearTimeout(timer)
    outer?.removeEventListener('abort', onAbort)
    channel.removeEventListener('close', onClose)
    prelude.release()
  }
  try {
    if (direction === 'inbound') {
      const greeting = await spoken.answer(prelude, within.signal)
      over()
      return { greeting }
    }
    const greeting = await spoken.greet(prelude, within.signal)
    // Until the verdict is there, what the peer sends waits behind it; what we send goes out.
    greeting.afterwards.then(over, (error: unknown) => {
      over()
      channel.abort(error instanceof Error ? error : new Error(String(error)))
    })
    return { greeting }
  } catch (cause) {
    // Who was told a reason gets the time to read it: not whoever said nothing that we know.
    const isTold = prelude.written > (direction === 'inbound' ? 0 : 1)
    if (isTold && cause instanceof WireError && cause.code === 'refused' && channel.status === 'open')
      await delay(PARTING_MS_MAX, undefined, { signal: within.signal }).catch(() => undefined)
    over()
    return { cause }
  }
}

/**
 * The same on the first stream of a connection that has streams from the start. The stream is the hello's alone, and ends with it; where the hello
 * goes wrong later, the connection ends, as it does where the channel itself is the hello's.
 */
export async function onFirstStream<Said extends { greeting: Greeting | Admission } | { error: Error }>(
  raw: Pick<MultiaddrConnection, 'abort'>,
  open: (signal: AbortSignal) => Promise<Stream>,
  say: (stream: Stream) => Promise<Said>,
): Promise<Said> {
  const stream = await open(AbortSignal.timeout(HELLO_MS_MAX))
  const said = await say(stream)
  const end = () => stream.close({ signal: AbortSignal.timeout(HELLO_MS_MAX) })
  const cut = (error: Error) => raw.abort(error)
  if ('greeting' in said) {
    const { greeting } = said as { greeting: Greeting | Admission }
    const over = 'afterwards' in greeting ? greeting.afterwards : Promise.resolve()
    // A refusal ends the whole connection.
    over.then(end).catch(cut)
  }
  return said
}

/** What a stranger sends on a stream, for parsers that read streams: all of it in chunks of any size, and then the end. */
import type { MessageStream } from '@libp2p/interface'
import { Prelude } from '../agent/mesh/prelude.ts'
import { encodeCbor } from '../protocols/cbor.ts'
import { WireError } from '../protocols/error.ts'
import { encodeFrame, Frames } from '../protocols/frame.ts'
import { streamPair } from '../test/stream-pair.ts'
import type { Random } from './random.ts'

/** On a stream of a protocol. */
export function incoming(input: Buffer, random: Random): Frames {
  const [theirs, ours] = streamPair()
  const frames = new Frames(ours)
  for (const chunk of cut(input, random)) theirs.send(chunk)
  void theirs.close()
  return frames
}

/** As the first words on a channel, or in front of a protocol. */
export function incomingPrelude(input: Buffer, random: Random): Prelude {
  const channel = new Channel()
  const prelude = new Prelude(channel as unknown as MessageStream)
  for (const chunk of cut(input, random)) channel.dispatchEvent(Object.assign(new Event('message'), { data: chunk }))
  channel.dispatchEvent(new Event('close'))
  return prelude
}

export function* cut(input: Buffer, random: Random): Generator<Buffer> {
  for (let at = 0; at < input.byteLength; ) {
    const length = random.oneIn(4) ? 1 + random.below(16) : 1 + random.below(input.byteLength)
    yield input.subarray(at, at + length)
    at += length
  }
}

export function framed(messages: readonly object[]): Buffer[] {
  return messages.map((message) => Buffer.from(encodeFrame(encodeCbor(message))))
}

/**
 * One input for each of these: an answer fits one question, and it is the stranger who chooses which. Taken when one takes it.
 *
 * @throws {WireError} when none does
 */
export async function askAll(questions: readonly (() => unknown)[]): Promise<void> {
  const refusals: WireError[] = []
  for (const ask of questions) {
    try {
      await ask()
    } catch (error) {
      if (!(error instanceof WireError)) throw error
      refusals.push(error)
    }
  }
  if (refusals.length === questions.length) throw refusals[0]
}

/** As much of a libp2p channel as a prelude uses; nobody reads what is sent, which is no fault. */
class Channel extends EventTarget {
  readonly status = 'open'
  send = () => true
  pause = () => undefined
  resume = () => undefined
  unshift = () => undefined
}

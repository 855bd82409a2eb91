/**
 * Certificates on their way, on a stream of the network: `/undernet/renewal/1`, both sides. A member asks one that may issue for a new
 * certificate of its own; or an issuer hands a member one that it made, with other labels. See spec.md beside this file.
 */
import { z } from 'zod'
import { decodeCbor, encodeCbor } from '../cbor.ts'
import { WireError } from '../error.ts'
import type { Frames } from '../frame.ts'
import { CHAIN_BYTES_MAX, type Chain, decodeChain } from './certificate.ts'

export const RENEWAL_PROTOCOL = '/undernet/renewal/1'
/** A chain, and what surrounds it. */
const MESSAGE_BYTES_MAX = CHAIN_BYTES_MAX + 128

const chain = z.custom<Uint8Array>(
  (value) => value instanceof Uint8Array && value.byteLength <= CHAIN_BYTES_MAX,
  'too long for a chain',
)
/** Nobody is named: it is about who asks, or who is asked. */
const request = z.discriminatedUnion('ask', [
  z.object({ ask: z.literal('renew') }),
  z.object({ ask: z.literal('take'), chain }),
])
/** For people and logs; it may be of a later version. */
const word = z.string().regex(/^[a-z-]{1,32}$/, 'not a word')
const renewed = z.union([z.object({ refused: word }), z.object({ chain })])
const taken = z.union([z.object({ refused: word }), z.object({ taken: z.boolean() })])

/** What the answering side does; a word says why not. */
export type RenewalDesk = {
  renew(): Chain | string
  take(chain: Chain): boolean | string
}

/** Asks for a new certificate. @throws {WireError} `refused` with the peer's word; what Frames and decodeChain throw */
export async function askRenewal(frames: Frames, signal: AbortSignal): Promise<Chain> {
  const answer = await ask(frames, { ask: 'renew' }, renewed, signal)
  if ('refused' in answer) throw new WireError('refused', `the peer does not renew: ${answer.refused}`)
  return decodeChain(answer.chain)
}

/** Hands the peer its new certificate, and says whether it was new there. @throws {WireError} likewise */
export async function handOver(frames: Frames, { bytes }: Pick<Chain, 'bytes'>, signal: AbortSignal): Promise<boolean> {
  const answer = await ask(frames, { ask: 'take', chain: bytes }, taken, signal)
  if ('refused' in answer) throw new WireError('refused', `the peer does not take it: ${answer.refused}`)
  return answer.taken
}

/** Answers one request. @throws {WireError} `malformed`, `too-large`, `closed` */
export async function answerRenewal(frames: Frames, desk: RenewalDesk, signal: AbortSignal): Promise<void> {
  const frame = await frames.read(signal, MESSAGE_BYTES_MAX)
  if (!frame) return
  const question = decodeCbor(frame, request)
  await frames.write(encodeCbor(answerTo(question, desk)), signal)
}

function answerTo(question: z.infer<typeof request>, desk: RenewalDesk): unknown {
  const given = question.ask === 'renew' ? desk.renew() : desk.take(decodeChain(question.chain))
  if (typeof given === 'string') return { refused: given }
  return typeof given === 'boolean' ? { taken: given } : { chain: given.bytes }
}

async function ask<T>(
  frames: Frames,
  question: z.infer<typeof request>,
  schema: z.ZodType<T>,
  signal: AbortSignal,
): Promise<T> {
  await frames.write(encodeCbor(question), signal)
  const frame = await frames.read(signal, MESSAGE_BYTES_MAX)
  if (!frame) throw new WireError('closed', 'the peer closed the stream instead of answering')
  return decodeCbor(frame, schema)
}

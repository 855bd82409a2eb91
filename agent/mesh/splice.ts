/**
 * Makes one stream of two: what arrives on one is sent on the other, an end of one ends the other, a reset resets it. Neither is read
 * faster than the other side takes; what a peer has under way when it is slowed down is bounded by yamux's window.
 */
import type { Stream } from '@libp2p/interface'
import { onDrained } from '../../protocols/drained.ts'

/** What yamux may let a peer send after a pause, with its largest window: libp2p resets the stream above this. */
const PAUSED_BYTES_MAX = 17 * 1024 * 1024

type Side = Pick<
  Stream,
  | 'send'
  | 'pause'
  | 'resume'
  | 'close'
  | 'abort'
  | 'status'
  | 'addEventListener'
  | 'removeEventListener'
  | 'readableEnded'
  | 'readStatus'
  | 'maxReadBufferLength'
  | 'writeBufferLength'
>

/** Resolves with the bytes that went through, when both streams are closed. Never rejects. */
export async function splice(one: Side, other: Side): Promise<number> {
  const counted = { bytes: 0 }
  pour(one, other, counted)
  pour(other, one, counted)
  await Promise.all([closed(one), closed(other)])
  return counted.bytes
}

function pour(from: Side, to: Side, counted: { bytes: number }): void {
  from.maxReadBufferLength = PAUSED_BYTES_MAX
  onDrained(to, () => {
    if (from.readStatus === 'paused') from.resume()
  })
  from.addEventListener('message', ({ data }) => {
    if (to.status !== 'open') return
    counted.bytes += data.byteLength
    if (!to.send(data) && from.readStatus === 'readable') from.pause()
  })
  const end = () => void to.close().catch((error: unknown) => to.abort(error as Error))
  if (from.readableEnded) end()
  else from.addEventListener('end', end, { once: true })
  // A clean close came with an end. What was not read by then is lost with a reset only.
  from.addEventListener('close', ({ error }) => error && to.abort(error), { once: true })
}

function closed(stream: Side): Promise<void> {
  if (stream.status !== 'open' && stream.status !== 'closing') return Promise.resolve()
  return new Promise((resolve) => stream.addEventListener('close', () => resolve(), { once: true }))
}

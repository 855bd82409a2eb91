/**
 * When a libp2p stream can be given more. Its `drain` event alone does not say so: the library sends it for each bit of window that the peer gives, and sends
 * what waits a microtask later. Whoever gives a byte at a time would have us queue a whole write for each.
 */
import type { Stream } from '@libp2p/interface'

/** Calls `act` each time that the peer made room and nothing waits to be sent any more. The result ends that. */
export function onDrained(
  stream: Pick<Stream, 'addEventListener' | 'removeEventListener' | 'writeBufferLength'>,
  act: () => void,
): () => void {
  let isOver = false
  const onDrain = () =>
    queueMicrotask(() => {
      if (!isOver && stream.writeBufferLength === 0) act()
    })
  stream.addEventListener('drain', onDrain)
  return () => {
    isOver = true
    stream.removeEventListener('drain', onDrain)
  }
}

/** kill -9 at any moment of fetching: the state opens again, the fetch goes on, and no byte is ever wrong. */
import { type ChildProcess, fork } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { PIECE_BYTES } from '../../protocols/pieces/tree.ts'
import { ContentNode, Store } from '../agent/content/peers.ts'
import { pattern } from '../protocols/pieces/pattern.ts'

const KILLS = 20
const BLOB = pattern(160 * PIECE_BYTES + 7)

test(`killed ${KILLS} times at random, a fetch ends with the right bytes each time it ends`, {
  timeout: 300_000,
}, async () => {
  await using honest = await ContentNode.start(new Map())
  const { digest } = await honest.store.publish(BLOB)
  const address = String(honest.peer.node.getMultiaddrs()[0])
  let directory = freshDirectory()
  let ends = 0
  let resumedBytes = 0
  for (let kills = 0; kills < KILLS; ) {
    const child = fork(join(import.meta.dirname, 'content-fetch.ts'), [directory, digest, honest.peerId, address])
    const ended = await killAtRandom(child, (firstBytes) => {
      resumedBytes = Math.max(resumedBytes, firstBytes)
    })
    if (!ended) kills++
    using store = new Store({ directory })
    const row = store.index.partial(digest)
    const bytes = await store.contents(digest)
    if (ended) expect(bytes).toBeDefined()
    if (bytes) {
      expect(Buffer.compare(bytes, BLOB)).toBe(0)
      expect(row).toBeUndefined()
      ends++
      rmSync(directory, { recursive: true })
      directory = freshDirectory()
    }
  }
  rmSync(directory, { recursive: true, force: true })
  expect(ends).toBeGreaterThan(0)
  expect(resumedBytes).toBeGreaterThan(0)
})

/** Kills the process after a random time or amount; true when it was done before. Reports the progress it began with. */
async function killAtRandom(child: ChildProcess, onFirst: (doneBytes: number) => void): Promise<boolean> {
  const exited = once(child, 'exit')
  let isDone = false
  let isFirst = true
  const killAtBytes = Math.random() * 1.3 * BLOB.byteLength
  child.on('message', (message) => {
    if (message === 'done') isDone = true
    if (message === 'ready' && Math.random() < 0.1) child.kill('SIGKILL')
    if (typeof message !== 'number') return
    if (isFirst) onFirst(message)
    isFirst = false
    // From here a few hundred microseconds more or less: in the middle of a write, a flush, a rename.
    if (message >= killAtBytes) setTimeout(() => child.kill('SIGKILL'), Math.random() * 3)
  })
  await exited
  return isDone
}

function freshDirectory(): string {
  return mkdtempSync(join(tmpdir(), 'undernet-kill-'))
}

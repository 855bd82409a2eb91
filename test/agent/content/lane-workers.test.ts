/** One lane as its user sees it, with a thread that is only pretended; and the threads themselves. */
import { readdirSync, readFileSync } from 'node:fs'
import { getPriority } from 'node:os'
import { describe, expect, test } from 'vitest'
import type { ToLaneWorker } from '../../../agent/content/lane-worker.ts'
import { Lane, type LaneUser, LaneWorkers } from '../../../agent/content/lane-workers.ts'
import type { Run } from '../../../agent/content/piece-picker.ts'
import { encodeCbor } from '../../../protocols/cbor.ts'
import { LANE_BYTES_MAX } from '../../../protocols/lane/lane.ts'
import { BLOB_BYTES_MAX, PIECE_BYTES } from '../../../protocols/pieces/tree.ts'
import { recordingLog, until } from './peers.ts'

function made() {
  const told: ToLaneWorker[] = []
  const lane = new Lane(1, (message) => told.push(message))
  const heard: unknown[] = []
  const user: LaneUser = {
    onPiece: (index, bytes, isChecked) => heard.push([index, bytes, isChecked]),
    onEnd: ({ why }, missing) => heard.push({ why, missing }),
  }
  lane.join(user)
  const get = (run: Run, isChecked = true, of = list) => lane.get(user, request, { run, list: of, fd: 3, isChecked })
  return { lane, told, heard, user, get, types: () => told.map(({ type }) => type) }
}

const list = { sizeBytes: 10 * PIECE_BYTES - 5, hashes: new Uint8Array(10 * 32), root: new Uint8Array(32) }
const request = Uint8Array.of(1)

describe('a lane', () => {
  test('tells its user of pieces, and at its end of those that did not come', async () => {
    const { lane, heard, told, get } = made()
    get({ from: 7, count: 3 }, false)
    get({ from: 0, count: 2 })
    expect(lane.load).toBe(5)
    expect(told).toMatchObject([{ place: { hashes: undefined } }, { place: { hashes: new Uint8Array(64) } }])
    lane.hear({ type: 'pieces', lane: 1, from: 7, count: 3 })
    lane.hear({ type: 'pieces', lane: 1, from: 0, count: 1 })
    expect(lane.load).toBe(1)
    lane.hear({ type: 'closed', lane: 1, why: 'lost', reason: 'gone' })
    expect(heard).toEqual([
      [7, PIECE_BYTES, false],
      [8, PIECE_BYTES, false],
      [9, PIECE_BYTES - 5, false],
      [0, PIECE_BYTES, true],
      { why: 'lost', missing: [{ from: 1, count: 1 }] },
    ])
    expect(lane.isOpen).toBe(false)
    await expect(lane.ask(request)).rejects.toMatchObject({ code: 'closed' })
    await expect(lane.opened).rejects.toMatchObject({ code: 'closed' })
    await lane.close()
  })

  test('goes on after an answer that says more, and ends at a no and at a lie', () => {
    const answers = [
      [{ lengthBytes: 2 * PIECE_BYTES, more: 1 }, 'go-on'],
      [{ lengthBytes: 2 * PIECE_BYTES - 1 }, 'close'],
      [{ error: 'busy' }, 'close'],
      [{ error: 'absent' }, 'close'],
      ['nonsense', 'close'],
    ] as const
    for (const [answer, then] of answers) {
      const { lane, types, get } = made()
      get({ from: 0, count: 2 })
      lane.hear({ type: 'answer', lane: 1, payload: encodeCbor(answer), isOfRun: true })
      expect(types()).toEqual(['get', then])
    }
  })

  test('brings a whole blob, and goes on after a no to one', async () => {
    const { lane, told, types } = made()
    const blob = { path: '/nowhere/blob', digest: 'ab', sizeBytes: 2 * PIECE_BYTES + 1 }
    const [taken, refused, cut] = [lane.take(request, blob), lane.take(request, blob), lane.take(request, blob)]
    expect(told[0]).toMatchObject({ place: { path: '/nowhere/blob', digest: 'ab' }, from: 0, count: 3 })
    expect(lane.load).toBe(9)
    lane.hear({ type: 'pieces', lane: 1, from: 0, count: 3 })
    await taken
    lane.hear({ type: 'answer', lane: 1, payload: encodeCbor({ error: 'busy' }), isOfRun: true })
    await expect(refused).rejects.toMatchObject({ code: 'busy' })
    expect(types()).toEqual(['get', 'get', 'get', 'skip'])
    lane.hear({ type: 'closed', lane: 1, why: 'wrong', reason: 'another hash' })
    await expect(cut).rejects.toMatchObject({ code: 'closed' })
    await expect(lane.take(request, blob)).rejects.toMatchObject({ code: 'closed' })
  })

  test('is closed by a peer that has another size of a whole blob, or answers nonsense; a disk is no peer', async () => {
    for (const answer of [{ lengthBytes: 4 }, 'nonsense']) {
      const { lane, types } = made()
      const taken = lane.take(request, { path: '/nowhere', digest: 'ab', sizeBytes: PIECE_BYTES })
      lane.hear({ type: 'answer', lane: 1, payload: encodeCbor(answer), isOfRun: true })
      expect(types()).toEqual(['get', 'close'])
      lane.hear({ type: 'closed', lane: 1, why: 'disk', reason: 'full', code: 'ENOSPC' })
      await expect(taken).rejects.toMatchObject({ message: 'full', code: 'ENOSPC' })
    }
  })

  test('is spent before one key has carried more than it may', async () => {
    const { lane, get } = made()
    const large = { sizeBytes: BLOB_BYTES_MAX, hashes: new Uint8Array(0), root: new Uint8Array(32) }
    const count = (LANE_BYTES_MAX / PIECE_BYTES) * 0.75
    get({ from: 0, count }, true, large)
    expect(lane.isSpent).toBe(false)
    get({ from: count, count: count / 3 }, true, large)
    expect(lane.isSpent).toBe(true)
    let isDrained = false
    const drained = lane.drained.then(() => {
      isDrained = true
    })
    await Promise.resolve()
    expect(isDrained).toBe(false)
    lane.finish({ why: 'closed', reason: 'enough' })
    await drained
  })
})

describe('the threads that receive', () => {
  test('give way to the others, and lower nobody else', async () => {
    const before = getPriority()
    await using workers = new LaneWorkers(recordingLog().log)
    workers.start()
    const nicer = () => prioritiesOf('lanes').filter((nice) => nice === Math.min(before + 5, 19)).length
    await until(() => nicer() >= workers.size)
    expect(getPriority()).toBe(before)
  })
})

/** Of this process's threads with the name. */
function prioritiesOf(name: string): number[] {
  return readdirSync('/proc/self/task').flatMap((thread) => {
    const line = statOf(thread)
    // Field 2 is the thread's name in parentheses; 19 is its nice value.
    const fields = line.split(') ').at(-1)?.split(' ') ?? []
    return line.includes(`(${name}) `) ? [Number(fields[16])] : []
  })
}

/** Empty when it has ended meanwhile. */
function statOf(thread: string): string {
  try {
    return readFileSync(`/proc/self/task/${thread}/stat`, 'utf8')
  } catch {
    return ''
  }
}

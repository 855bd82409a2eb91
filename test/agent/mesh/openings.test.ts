/** Turns to open streams: in order, so many at once to each peer, and whoever goes away leaves no gap. */
import { describe, expect, it } from 'vitest'
import { Openings } from '../../../agent/mesh/openings.ts'

const never = new AbortController().signal

/** Something that is opened when it is told to be. */
function opening(openings: Openings, peerId: string, signal = never) {
  const { promise, resolve, reject } = Promise.withResolvers<string>()
  const state = { isBegun: false }
  const done = openings.inTurn(peerId, signal, () => {
    state.isBegun = true
    return promise
  })
  done.catch(() => undefined)
  return { state, done, finish: () => resolve('open'), fail: () => reject(new Error('no')) }
}

describe('streams that are opened', () => {
  it('take turns, as many at once as there is room for, in order', async () => {
    const openings = new Openings()
    const all = Array.from({ length: 40 }, () => opening(openings, 'pear'))
    const begun = () => all.filter(({ state }) => state.isBegun).length
    const first = begun()
    expect(first).toBeLessThan(40)
    const other = opening(openings, 'plum')
    expect(other.state.isBegun).toBe(true)
    all[0]?.finish()
    all[1]?.fail()
    await expect(all[0]?.done).resolves.toBe('open')
    await expect(all[1]?.done).rejects.toThrow('no')
    await Promise.resolve()
    expect(begun()).toBe(first + 2)
    expect(all.slice(0, first + 2).every(({ state }) => state.isBegun)).toBe(true)
    for (const one of all) one.finish()
    await Promise.all(all.slice(2).map(({ done }) => done))
  })

  it('are given up by whoever waits, and the others still get their turn', async () => {
    const openings = new Openings()
    const running = Array.from({ length: 32 }, () => opening(openings, 'pear'))
    const over = new AbortController()
    const impatient = opening(openings, 'pear', over.signal)
    const patient = opening(openings, 'pear')
    over.abort(new Error('gone away'))
    await expect(impatient.done).rejects.toThrow('gone away')
    running[0]?.finish()
    await running[0]?.done
    await Promise.resolve()
    expect([impatient.state.isBegun, patient.state.isBegun]).toEqual([false, true])
    await expect(opening(openings, 'pear', over.signal).done).rejects.toThrow('gone away')
  })

  it('are refused when too many wait', async () => {
    const openings = new Openings()
    const over = new AbortController()
    const waiting = Array.from({ length: 32 + 2_048 }, () => opening(openings, 'pear', over.signal))
    await expect(opening(openings, 'pear').done).rejects.toMatchObject({ code: 'limit' })
    over.abort(new Error('over'))
    await expect(waiting.at(-1)?.done).rejects.toThrow('over')
  })
})

/** What the service manager is told, by one that listens here. */
import { afterEach, describe, expect, it, vi } from 'vitest'
import { Supervision, summaryOf } from '../../../agent/node/supervision.ts'

const log = { debug: vi.fn(), info: vi.fn(), warn: vi.fn(), error: vi.fn() }

function listener() {
  const told: string[] = []
  let isAlive: () => boolean = () => false
  const notifier = {
    ready: (text: string) => void told.push(`ready ${text}`),
    status: (text: string) => void told.push(`status ${text}`),
    reloading: () => void told.push('reloading'),
    stopping: (text: string) => void told.push(`stopping ${text}`),
    watch: (given?: () => boolean) => {
      isAlive = given ?? isAlive
    },
  }
  return { told, notifier, isAlive: () => isAlive() }
}

afterEach(() => {
  vi.useRealTimers()
})

describe('Supervision', () => {
  it('says that the agent is ready, how it is when that changes, and a reload from its begin to its end', () => {
    vi.useFakeTimers()
    const { told, notifier } = listener()
    let summary = '0 peers'
    using supervision = new Supervision({
      notifier,
      ask: async () => undefined,
      summary: () => summary,
      log,
      statusMs: 10,
    })
    vi.advanceTimersByTime(25)
    summary = '1 peer'
    vi.advanceTimersByTime(25)
    supervision.reload(() => told.push('work'))
    supervision.stopping('bye')
    summary = '2 peers'
    vi.advanceTimersByTime(25)
    expect(told).toEqual(['ready 0 peers', 'status 1 peer', 'reloading', 'work', 'ready 1 peer', 'stopping bye'])
  })

  it('says that the agent is alive while it answers, and no more once it does not', async () => {
    const { notifier, isAlive } = listener()
    let answer = Promise.resolve()
    using _ = new Supervision({ notifier, ask: () => answer, summary: () => '', log })
    for (const _ of [1, 2, 3]) {
      expect(isAlive()).toBe(true)
      await answer
    }
    const hanging = Promise.withResolvers<void>()
    answer = hanging.promise
    expect(isAlive()).toBe(true)
    expect(isAlive()).toBe(false)
    expect(isAlive()).toBe(false)
    hanging.resolve()
    await answer
    expect(isAlive()).toBe(true)
    await answer
    answer = Promise.reject(new Error('no socket'))
    expect(isAlive()).toBe(true)
    await answer.catch(() => undefined)
    expect(isAlive()).toBe(false)
    await vi.waitFor(() => expect(log.warn).toHaveBeenCalledWith({ reason: 'no socket' }, 'agent.unwell'))
  })
})

describe('summaryOf', () => {
  it('counts', () => {
    expect(summaryOf({ peers: 1, networks: 2, artifacts: 0 })).toBe('1 peer in 2 networks, 0 artifacts known')
  })
})

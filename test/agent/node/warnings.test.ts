/** The warnings of `agent status`: each appears when it should, says what to do, and is silent when all is well. */
import { describe, expect, it } from 'vitest'
import { type Condition, Misses, PeerFaults, warningsOf } from '../../../agent/node/warnings.ts'

const well: Condition = {
  uptimeSeconds: 100,
  peerCount: 2,
  mdns: true,
  open: true,
  bootstraps: [],
  clockOffsetMs: 1_000,
  missingPaths: new Set(),
  disk: { directory: '/state', freeBytes: 10 * 2 ** 30 },
}
const bootstrap = {
  address: '/ip4/192.0.2.7/tcp/7477',
  peerId: undefined,
  reason: 'connection refused',
  failures: 3,
}
const codes = (condition: Partial<Condition>) => warningsOf({ ...well, ...condition }).map(({ code }) => code)

describe('warnings', () => {
  it('are silent when all is well, and just after the start', () => {
    expect(codes({})).toEqual([])
    expect(codes({ peerCount: 0, uptimeSeconds: 3 })).toEqual([])
    expect(codes({ clockOffsetMs: undefined })).toEqual([])
    expect(codes({ bootstraps: [{ ...bootstrap, state: 'self' }] })).toEqual([])
  })

  it('tell of having no peers, and what to do with and without mDNS', () => {
    expect(codes({ peerCount: 0 })).toEqual(['peers.none'])
    const [without] = warningsOf({ ...well, peerCount: 0, mdns: false })
    expect(without?.next).toContain('With mDNS off, start with --bootstrap')
    const [closed] = warningsOf({ ...well, peerCount: 0, open: false })
    expect(closed).toMatchObject({ code: 'peers.none', next: expect.stringContaining('agent join') as string })
  })

  it('name the bootstrap that cannot be reached, and why, instead of saying that there are no peers', () => {
    const bootstraps = [{ ...bootstrap, state: 'unreachable' as const }]
    const [warning, ...others] = warningsOf({ ...well, peerCount: 0, bootstraps })
    expect(others).toEqual([])
    expect(warning).toMatchObject({
      code: 'bootstrap.unreachable',
      message: '/ip4/192.0.2.7/tcp/7477 cannot be reached: connection refused',
    })
  })

  it('tell which way the clock is off', () => {
    const [behind] = warningsOf({ ...well, clockOffsetMs: 600_000 })
    expect(behind?.message).toBe('this clock is 600 s behind those of the peers')
    const [ahead] = warningsOf({ ...well, clockOffsetMs: -600_000 })
    expect(ahead?.message).toContain('ahead of')
  })

  it('name published paths that Nix deleted, not too many', () => {
    const [warning] = warningsOf({ ...well, missingPaths: new Set(['/nix/store/a', 'b', 'c', 'd']) })
    expect(warning?.message).toContain('4 published store paths')
    expect(warning?.message).toMatch(/…$/)
  })
})

describe('a disk', () => {
  const disk = (freeBytes: number | undefined) => warningsOf({ ...well, disk: { directory: '/state', freeBytes } })
  it('is told of before it is full, and when it is', () => {
    expect(disk(undefined)).toEqual([])
    expect(disk(30 * 2 ** 20)).toMatchObject([{ code: 'disk.low', message: expect.stringContaining('30.0 MiB free') }])
    expect(disk(4_096)).toMatchObject([{ code: 'disk.full', message: expect.stringContaining('/state is full') }])
  })
})

describe('faults of peers', () => {
  it('are told for a while, once for each peer and subject, and only so many', () => {
    let now = 0
    const faults = new PeerFaults(() => now)
    for (let nth = 0; nth < 20; nth++) faults.add({ peerId: 'p', about: `path ${nth}`, reason: 'forged' })
    faults.add({ peerId: 'p', about: 'path 19', reason: 'forged again' })
    const told = faults.warnings()
    expect(told.length).toBe(5)
    expect(told.at(-1)?.message).toBe('refused from p: path 19: forged again')
    now += 61 * 60_000
    expect(faults.warnings()).toEqual([])
  })
})

describe('what could not be had', () => {
  it('is told until it can be, or for a while, and not too much of it', () => {
    let now = 0
    const misses = new Misses(() => now)
    for (let nth = 0; nth < 20; nth++) misses.note(`/nix/store/${nth}`, 'p: nothing came for 20 s')
    expect(misses.warnings().length).toBe(5)
    expect(misses.warnings().at(-1)?.message).toMatch(/\/nix\/store\/19, .* p: nothing came/)
    misses.note('/nix/store/19', undefined)
    expect(misses.warnings().at(-1)?.message).toMatch(/\/nix\/store\/18/)
    now += 61 * 60_000
    expect(misses.warnings()).toEqual([])
  })
})

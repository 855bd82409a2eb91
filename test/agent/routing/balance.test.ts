/** Which instance is tried first: health, zone, distance, weight, stickiness. */
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { order } from '../../../agent/routing/balance.ts'
import { instanceOf } from './instance.ts'

const states = fc.constantFrom('healthy', 'ill', 'draining', 'unknown' as const)
const anyInstances = fc.uniqueArray(
  fc.record({
    peerId: fc.stringMatching(/^[a-z]{1,4}$/),
    state: states,
    weight: fc.integer({ min: 0, max: 1_000 }),
    zone: fc.constantFrom('a', 'b', 'c'),
    rttMs: fc.double({ min: 0, max: 500, noNaN: true }),
  }),
  { selector: ({ peerId }) => peerId, maxLength: 12 },
)
const names = (instances: { peerId: string }[]) => instances.map(({ peerId }) => peerId)

describe('the order of instances', () => {
  it('has each that takes streams once, healthy ones first, whatever else they are', () => {
    fc.assert(
      fc.property(anyInstances, fc.option(fc.string(), { nil: undefined }), (all, sticky) => {
        const instances = all.map((one) => instanceOf(one))
        const ordered = order(instances, { self: 'me', zone: 'a', sticky })
        const open = instances.filter(({ state }) => state === 'healthy' || state === 'unknown')
        expect(names(ordered).toSorted()).toEqual(names(open).toSorted())
        const firstUnknown = ordered.findIndex(({ state }) => state === 'unknown')
        expect(firstUnknown === -1 || ordered.slice(firstUnknown).every(({ state }) => state === 'unknown')).toBe(true)
      }),
    )
  })

  it('puts this node, its zone, and those that are near before others', () => {
    const all = [
      instanceOf({ peerId: 'far', zone: 'a', rttMs: 40 }),
      instanceOf({ peerId: 'elsewhere', zone: 'b', rttMs: 1 }),
      instanceOf({ peerId: 'near', zone: 'a', rttMs: 1 }),
      instanceOf({ peerId: 'apart', zone: 'a' }),
    ]
    expect(names(order(all, { self: 'me', zone: 'a' })).slice(0, 1)).toEqual(['near'])
    expect(names(order(all, { self: 'me', zone: 'a' })).at(-1)).toBe('elsewhere')
    expect(names(order([...all, instanceOf({ peerId: 'me' })], { self: 'me', zone: 'a' }))[0]).toBe('me')
  })

  it('puts what failed a moment ago last, and spares behind all that are alike', () => {
    const all = ['one', 'two', 'three'].map((peerId) => instanceOf({ peerId, weight: peerId === 'two' ? 0 : 1 }))
    const ordered = order(all, { self: 'me', failedLately: ({ peerId }) => peerId === 'one' })
    expect(names(ordered)).toEqual(['three', 'two', 'one'])
  })

  it('gives streams out by weight', () => {
    const all = [instanceOf({ peerId: 'one', weight: 1 }), instanceOf({ peerId: 'three', weight: 3 })]
    let seed = 1
    const random = () => {
      seed = (seed * 48_271) % 2_147_483_647
      return seed / 2_147_483_647
    }
    const firsts = Array.from({ length: 4_000 }, () => order(all, { self: 'me', random })[0]?.peerId)
    const share = firsts.filter((one) => one === 'three').length / firsts.length
    expect(share).toBeGreaterThan(0.7)
    expect(share).toBeLessThan(0.8)
  })

  it('leaves sticky streams where they are when others come and go', () => {
    fc.assert(
      fc.property(anyInstances, fc.string(), fc.nat(), (all, sticky, nth) => {
        const instances = all.map((one) => instanceOf({ ...one, state: 'healthy', weight: 1 }))
        const [first] = order(instances, { self: 'me', sticky })
        const gone = instances[nth % Math.max(instances.length, 1)]
        const [after] = order(
          instances.filter((one) => one !== gone),
          { self: 'me', sticky },
        )
        if (first !== gone) expect(after?.peerId).toBe(first?.peerId)
      }),
    )
  })
})

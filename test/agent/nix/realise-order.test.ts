/** The order in which the local Nix asks for NARs: checked against a plain simulation of its goals. */
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { type Kind, RealiseOrder, type WantedNar } from '../../../agent/nix/realise-order.ts'

/** `name: those that it refers to`; its digest is its name, and names are in the order of their paths. */
function nars(all: Record<string, string[]>): WantedNar[] {
  return Object.entries(all).map(([name, references]) => ({
    path: pathOf(name),
    narHash: name,
    narSize: 1_000,
    references: references.map(pathOf),
  }))
}

function pathOf(name: string): string {
  return `/nix/store/${'0'.repeat(32)}-${name}`
}

/** Takes one after the other. */
function drain(order: RealiseOrder, kind: Kind = 'large'): string[] {
  const taken: string[] = []
  for (let next = order.first(kind); next !== undefined; next = order.first(kind)) {
    taken.push(next.narHash)
    order.delete(next.narHash)
  }
  return taken
}

function orderOf(all: readonly WantedNar[]): RealiseOrder {
  const order = new RealiseOrder()
  for (const nar of all) order.add('large', nar)
  return order
}

/** Of those whose references are all done, the first by name. */
function simulated(all: Record<string, string[]>): string[] {
  const left = new Map(Object.entries(all))
  const done: string[] = []
  for (;;) {
    const ready = [...left].filter(([name, needs]) => needs.every((one) => one === name || !left.has(one)))
    const [next] = ready.map(([name]) => name).sort()
    if (next === undefined) return done
    left.delete(next)
    done.push(next)
  }
}

describe('the order of NARs', () => {
  it('is that of their references, then of their names, in whatever order they were wanted', () => {
    const closure = { root: ['b', 'c', 'root'], b: ['a'], c: ['a', 'd'], a: [], d: ['elsewhere'] }
    const wanted = nars(closure)
    for (const all of [wanted, wanted.toReversed()]) expect(drain(orderOf(all))).toEqual(['a', 'b', 'd', 'c', 'root'])
  })

  it('is the same as that of the goals of Nix, for any closure', () => {
    const names = 'abcdefghijklmnop'.split('')
    const closure = fc.record(
      Object.fromEntries(
        names.map((name, at) => {
          const before = names.slice(0, at + 1)
          return [name, fc.subarray(before, { maxLength: Math.min(before.length, 4) })]
        }),
      ),
    )
    // So that names say nothing of who refers to whom.
    const renaming = fc.shuffledSubarray(names, { minLength: names.length })
    fc.assert(
      fc.property(closure, renaming, fc.infiniteStream(fc.nat()), (all, renamed, picks) => {
        const name = (one: string) => renamed[names.indexOf(one)] ?? one
        const given = Object.fromEntries(Object.entries(all).map(([one, needs]) => [name(one), needs.map(name)]))
        const wanted = nars(given)
        const mixed = wanted
          .map((nar) => ({ nar, at: picks.next().value as number }))
          .sort((one, other) => one.at - other.at)
          .map(({ nar }) => nar)
        expect(drain(orderOf(mixed))).toEqual(simulated(given))
      }),
    )
  })

  it('goes on behind one that was asked for out of turn', () => {
    const order = orderOf(nars({ a: [], b: ['a'], c: ['b'] }))
    order.delete('b')
    expect(drain(order)).toEqual(['a', 'c'])
    const other = orderOf(nars({ a: [], b: ['a'] }))
    expect(other.first('large')?.narHash).toBe('a')
    other.delete('a')
    expect(drain(other)).toEqual(['b'])
  })

  it('knows how much waits', () => {
    const order = orderOf(nars({ a: [], b: ['a'], c: [] }))
    order.delete('b')
    order.delete('b')
    for (const again of nars({ a: [] })) order.add('large', again)
    expect(order.bytes).toBe(2_000)
    drain(order)
    expect(order.bytes).toBe(0)
  })

  it('keeps small ones and others apart, and has one come after the other all the same', () => {
    const order = orderOf(nars({ next: ['leaf'], other: [] }))
    for (const leaf of nars({ leaf: [] })) order.add('small', leaf)
    expect(order.first('small')?.narHash).toBe('leaf')
    expect(order.first('large')?.narHash).toBe('other')
    order.delete('leaf')
    expect(drain(order)).toEqual(['next', 'other'])
  })

  it('knows two NARs of one path apart', () => {
    const order = orderOf(nars({ a: [], b: ['a'] }))
    for (const nar of nars({ a: [] })) order.add('large', { ...nar, narHash: 'another' })
    order.delete('a')
    expect(drain(order)).toEqual(['another', 'b'])
  })

  it('never comes to those that refer to each other, as Nix does not', () => {
    const order = orderOf(nars({ a: ['b'], b: ['a'], c: [] }))
    expect(drain(order)).toEqual(['c'])
    order.delete('a')
    expect(drain(order)).toEqual(['b'])
  })

  it('forgets the oldest of more than a closure has', () => {
    const order = new RealiseOrder()
    const count = 10_010
    for (let at = 0; at < count; at++) {
      const [nar] = nars({ [`${at}`.padStart(5, '0')]: [] })
      order.add('large', nar as WantedNar)
    }
    const taken = drain(order)
    expect(taken).toHaveLength(10_000)
    expect(taken[0]).toBe('00010')
  })
})

/** What libp2p remembers stays bounded, whatever strangers write. */
import fc from 'fast-check'
import { Key } from 'interface-datastore'
import { describe, expect, test } from 'vitest'
import { BoundedDatastore } from '../../../agent/mesh/datastore.ts'

const bytes = (size: number) => new Uint8Array(size)

describe('BoundedDatastore', () => {
  test('gives back what was put, and says what is not there', () => {
    const store = new BoundedDatastore()
    store.put(new Key('/peers/a'), bytes(3))
    expect(store.get(new Key('/peers/a'))).toEqual(bytes(3))
    expect(store.has(new Key('/peers/b'))).toBe(false)
    expect(() => store.get(new Key('/peers/b'))).toThrow(expect.objectContaining({ name: 'NotFoundError' }))
    store.delete(new Key('/peers/a'))
    expect(store.has(new Key('/peers/a'))).toBe(false)
  })

  test('lists what is below a path, and nothing for a path that has nothing', () => {
    const store = new BoundedDatastore()
    for (const name of ['/peers/a', '/peers/b', '/dht/provider/x/a', '/dht/provider/y/a']) {
      store.put(new Key(name), bytes(1))
    }
    const names = (prefix: string) =>
      [...(store.query({ prefix }) as Generator<{ key: Key }>)].map(({ key }) => key.toString())
    expect(names('/peers/')).toEqual(['/peers/a', '/peers/b'])
    expect(names('/dht/provider/x')).toEqual(['/dht/provider/x/a'])
    expect(names('/dht/provider/z')).toEqual([])
    expect(names('/dht/provider')).toEqual(['/dht/provider/x/a', '/dht/provider/y/a'])
  })

  test('lets the least recently used go when it is full, and never what is pinned', () => {
    const store = new BoundedDatastore(() => new Set(['/peers/self']), { entries: 100 })
    store.put(new Key('/peers/self'), bytes(10))
    store.put(new Key('/peers/used'), bytes(10))
    for (let at = 0; at < 1_000; at++) {
      store.put(new Key(`/peers/${at}`), bytes(10))
      store.get(new Key('/peers/used'))
    }
    expect(store.size).toBeLessThanOrEqual(100)
    expect(store.has(new Key('/peers/self'))).toBe(true)
    expect(store.has(new Key('/peers/used'))).toBe(true)
    expect(store.has(new Key('/peers/0'))).toBe(false)
    expect(store.has(new Key('/peers/999'))).toBe(true)
  })

  test('bounds the providers of one content id, and refuses an entry that is too large', () => {
    const store = new BoundedDatastore()
    for (let at = 0; at < 2_000; at++) store.put(new Key(`/dht/provider/x/${at}`), bytes(8))
    expect(store.size).toBe(500)
    expect(() => store.put(new Key('/peers/a'), bytes(17 * 1024))).toThrow(RangeError)
  })

  test('stays within its bounds whatever is done to it', () => {
    const names = fc.constantFrom(
      '/peers/a',
      '/peers/b',
      '/peers/c',
      '/dht/provider/x/a',
      '/dht/provider/x/b',
      '/dht/record/r',
    )
    const step = fc.oneof(
      fc.record({ act: fc.constant('put' as const), name: names, size: fc.nat(400) }),
      fc.record({ act: fc.constant('delete' as const), name: names, size: fc.constant(0) }),
    )
    fc.assert(
      fc.property(fc.array(step), (steps) => {
        const store = new BoundedDatastore(() => new Set(), { entries: 4, bytes: 1_000 })
        for (const { act, name, size } of steps) {
          if (act === 'put') store.put(new Key(name), bytes(size))
          else store.delete(new Key(name))
          expect(store.size).toBeLessThanOrEqual(4)
          const held = [...(store.query({}) as Generator<{ key: Key; value: Uint8Array }>)]
          expect(held.length).toBe(store.size)
          const total = held.reduce((sum, { key, value }) => sum + key.toString().length + value.byteLength, 0)
          expect(total).toBeLessThanOrEqual(1_000)
        }
      }),
    )
  })
})

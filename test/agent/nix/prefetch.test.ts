/** How far ahead of the local Nix NARs are fetched. */
import { setImmediate as nextTurn } from 'node:timers/promises'
import { expect, it, vi } from 'vitest'
import { Prefetch } from '../../../agent/nix/prefetch.ts'

const MIB = 1024 * 1024

/** Of a path that refers to none. */
function nar(narHash: string, narSize: number) {
  return { path: `/nix/store/${'0'.repeat(32)}-${narHash}`, narHash, narSize, references: [] }
}

function recorded() {
  const begun: string[] = []
  const aborted: string[] = []
  const finish = new Map<string, () => void>()
  const fetch = (digest: string, _moreBytes: number, signal: AbortSignal) => {
    begun.push(digest)
    return new Promise<void>((resolve, reject) => {
      finish.set(digest, resolve)
      signal.addEventListener('abort', () => {
        aborted.push(digest)
        reject(new Error('aborted'))
      })
    })
  }
  return { begun, aborted, finish, fetch }
}

it('fetches a few at a time, in the order in which they will be asked for, each once', async () => {
  const { begun, finish, fetch } = recorded()
  await using prefetch = new Prefetch(fetch)
  for (const digest of ['a', 'b', 'c', 'd', 'e', 'f', 'a']) prefetch.want(nar(digest, MIB))
  expect(begun).toEqual(['a', 'b', 'c', 'd'])
  finish.get('b')?.()
  await vi.waitFor(() => expect(begun).toEqual(['a', 'b', 'c', 'd', 'e']))
  finish.get('c')?.()
  await vi.waitFor(() => expect(begun).toEqual(['a', 'b', 'c', 'd', 'e', 'f']))
})

it('fetches many small ones beside the large ones', async () => {
  const { begun, fetch } = recorded()
  await using prefetch = new Prefetch(fetch)
  for (let at = 0; at < 6; at++) prefetch.want(nar(`large-${at}`, MIB))
  for (let at = 0; at < 40; at++) prefetch.want(nar(`small-${at}`, 1_000))
  expect(begun.filter((digest) => digest.startsWith('large'))).toHaveLength(4)
  expect(begun.filter((digest) => digest.startsWith('small'))).toHaveLength(32)
})

it('stops when too much is ahead that nobody asked for, until it is asked for or forgotten', async () => {
  const { begun, finish, fetch } = recorded()
  let now = 0
  await using prefetch = new Prefetch(fetch, () => now)
  for (const digest of ['a', 'b', 'c', 'd']) prefetch.want(nar(digest, 25 * MIB))
  expect(begun).toEqual(['a', 'b'])
  finish.get('a')?.()
  finish.get('b')?.()
  await vi.waitFor(() => {
    prefetch.claim('a', 0)
    expect(begun).toEqual(['a', 'b', 'c'])
  })
  finish.get('c')?.()
  now = 200_000
  prefetch.want(nar('z', MIB))
  await vi.waitFor(() => expect(begun).toEqual(['a', 'b', 'c', 'd', 'z']))
})

it('fetches little ahead as long as Nix may only look, and more as it takes', async () => {
  const { begun, finish, fetch } = recorded()
  let now = 0
  await using prefetch = new Prefetch(fetch, () => now)
  for (const digest of 'abcdefghijkl') prefetch.want(nar(digest, 20 * MIB))
  expect(begun.join('')).toBe('abc')
  const come = async (digests: string) => {
    for (const digest of digests) finish.get(digest)?.()
    await nextTurn()
  }
  await come('abc')
  prefetch.claim('a', 20 * MIB)
  expect(begun.join('')).toBe('abcde')
  await come('de')
  prefetch.claim('b', 20 * MIB)
  expect(begun.join('')).toBe('abcdefg')
  await come('fg')
  // Nobody asks for the rest.
  now = 200_000
  prefetch.want(nar('z', MIB))
  expect(begun.join('')).toBe('abcdefghij')
})

it('fetches little ahead again for whoever looks long after somebody took all', async () => {
  const { begun, finish, fetch } = recorded()
  let now = 0
  await using prefetch = new Prefetch(fetch, () => now)
  for (const digest of 'abc') prefetch.want(nar(digest, 20 * MIB))
  for (const digest of 'abc') finish.get(digest)?.()
  await nextTurn()
  for (const digest of 'abc') prefetch.claim(digest, 20 * MIB)
  now = 200_000
  for (const digest of 'defghi') prefetch.want(nar(digest, 20 * MIB))
  expect(begun.join('')).toBe('abcdef')
})

it('fetches one that is larger than all the room by itself', async () => {
  const { begun, fetch } = recorded()
  await using prefetch = new Prefetch(fetch)
  prefetch.want(nar('a', MIB))
  prefetch.want(nar('huge', 200 * MIB))
  expect(begun).toEqual(['a'])
  prefetch.claim('a', MIB)
  prefetch.want(nar('b', MIB))
  expect(begun).toEqual(['a', 'huge'])
})

it('leaves what somebody waits for to him', async () => {
  const { aborted, fetch } = recorded()
  await using prefetch = new Prefetch(fetch)
  prefetch.want(nar('a', MIB))
  prefetch.claim('a', MIB)
  expect(aborted).toEqual(['a'])
})

it('says how much waits behind each', async () => {
  const told = new Map<string, number>()
  const done = Promise.withResolvers<void>()
  const fetch = async (digest: string, moreBytes: number) => {
    told.set(digest, moreBytes)
    await done.promise
  }
  await using prefetch = new Prefetch(fetch)
  for (const digest of ['a', 'b', 'c', 'd', 'e', 'f', 'g']) prefetch.want(nar(digest, MIB))
  done.resolve()
  await vi.waitFor(() => expect(told.size).toBe(7))
  expect([...told.values()]).toEqual([0, 0, 0, 0, 2 * MIB, MIB, 0])
})

it('ends with its owner', async () => {
  const { begun, aborted, fetch } = recorded()
  {
    await using prefetch = new Prefetch(fetch)
    for (const digest of ['a', 'b', 'c', 'd', 'e']) prefetch.want(nar(digest, MIB))
  }
  expect(begun).toHaveLength(4)
  expect(aborted).toHaveLength(4)
})

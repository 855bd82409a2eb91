/** Whose signatures the policy lets this node believe. */
import { expect, it } from 'vitest'
import { CacheKey } from '../../../agent/nix/signing.ts'
import { MemberSigners } from '../../../agent/node/member-signers.ts'

const keys = Array.from({ length: 6 }, (_, nth) => CacheKey.ephemeral(`key-${nth}`).publicKey.text)

function made() {
  const signers = [
    { publisher: new Uint8Array(32).fill(1), signers: [keys[0] as string, 'no key'] },
    { publisher: new Uint8Array(32).fill(2), signers: [keys[1] as string] },
    { publisher: new Uint8Array(32).fill(3), signers: keys },
    { publisher: new Uint8Array(32).fill(4), signers: [keys[2] as string] },
  ]
  const inStores: typeof signers = []
  const allowed = new Set(['ci'])
  const out = new Set<number>()
  const names = ['', 'ci', 'laptop', 'greedy']
  const network = {
    artifacts: { signers: () => signers },
    filters: { signers: () => inStores },
    members: {
      of: ([first = 0]: Uint8Array) => (names[first] && !out.has(first) ? { name: names[first] } : undefined),
    },
    membership: {
      self: { name: 'here' },
      decide: ({ name }: { name: string }, _to: unknown, verb: string) => ({
        allowed: verb === 'content:sign' && allowed.has(name),
      }),
    },
  }
  let now = 0
  const all = new MemberSigners({ get: (id: string) => (id === 'home' ? network : undefined) } as never, () => now)
  const named = () => {
    now += 2_000
    return all.in('home').map(({ text }) => text)
  }
  return { all, named, allowed, out, inStores }
}

it('are those of members to whom the policy gives it, as they name them', () => {
  const { all, named, allowed } = made()
  expect(named()).toEqual([keys[0]])
  allowed.add('laptop')
  expect(named()).toEqual([keys[0], keys[1]])
  allowed.clear()
  expect(named()).toEqual([])
  expect(all.in('elsewhere')).toEqual([])
})

it('are also those of who gives out a store and has published nothing', () => {
  const { named, inStores } = made()
  inStores.push({ publisher: new Uint8Array(32).fill(1), signers: [keys[3] as string] })
  expect(named()).toEqual([keys[0], keys[3]])
  inStores.length = 0
  expect(named()).toEqual([keys[0]])
})

it('are no more when the member is out', () => {
  const { named, out } = made()
  expect(named()).toHaveLength(1)
  out.add(1)
  expect(named()).toEqual([])
})

it('are a few of each member', () => {
  const { named, allowed } = made()
  allowed.clear()
  allowed.add('greedy')
  expect(named()).toEqual(keys.slice(0, 4))
})

/** Strangers with a pass: who is let in by it, and who sees nothing of it. */
import { expect, test } from 'vitest'
import type { Door } from '../../../protocols/hello/hello.ts'
import { decodePass, encodePass, type Pass } from '../../../protocols/membership/pass.ts'
import { HOUR, makeKey, NOW, TestNetwork, TestParty } from '../membership/people.ts'
import { converse, view } from './conversation.ts'

const network = new TestNetwork()
const issuer = makeKey()
const pass = decodePass(Uint8Array.from(encodePass({ network: network.id, expires: NOW + HOUR }, issuer).bytes))
const takesAll: Door = { admits: () => true }

const stranger = () => new TestParty(makeKey(), NOW)
function relay(): TestParty {
  const party = stranger()
  return party.join(network, network.certify(party.key.publicKey, { name: 'relay' }))
}
const guestOf = (side: object): unknown => ('guest' in side ? side.guest : undefined)

test('a pass lets a stranger in as a guest, and as nothing else', async () => {
  const shown: Pass[] = []
  const door: Door = { admits: (one) => shown.push(one) > 0 }
  const { dialler, listener } = await converse(stranger(), relay(), { pass, door })
  expect([view(dialler), view(listener)]).toEqual(['', ''])
  expect([guestOf(dialler), guestOf(listener)]).toEqual([pass, pass])
  expect(shown).toEqual([pass])
})

test('a member with a pass is a member, and a guest beside it', async () => {
  const member = relay()
  const { dialler, listener } = await converse(member, relay(), { pass, door: takesAll })
  expect([view(dialler), view(listener), guestOf(listener)]).toEqual(['relay', 'relay', pass])
})

test.each([
  ['that has expired', { pass: encodePass({ network: network.id, expires: NOW }, issuer), door: takesAll }],
  ['of somebody for whom nobody is carried', { pass, door: { admits: () => false } }],
  ['where nobody carries', { pass }],
  ['that its issuer did not sign', { pass: altered(pass), door: takesAll }],
])('a pass %s gets the silence of a stranger', async (_why, { pass, door }: { pass: Pass; door?: Door }) => {
  const { dialler, listener, said } = await converse(stranger(), relay(), { pass, ...(door && { door }) })
  expect(view(dialler)).toBe('refused: the peer shares no network with this node')
  expect(view(listener)).toMatch(/^refused: /)
  expect(said.map(({ by }) => by)).toEqual(['dialler'])
})

test('a relay that says nothing of the pass has not let in by it', async () => {
  const open = relay()
  open.open = true
  const newcomer = stranger()
  newcomer.open = true
  const { dialler } = await converse(newcomer, open, { pass })
  expect([view(dialler), guestOf(dialler)]).toEqual(['open', undefined])
})

function altered(good: Pass): Pass {
  const bytes = Uint8Array.from(good.bytes)
  bytes[0] = (bytes[0] ?? 0) ^ 1
  return { ...good, bytes }
}
